"""torch.compile of what a denoiser repeats: its blocks are alike, and one compiled code serves them all."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def compile_blocks(denoiser: nn.Module, **options: Any) -> None:
    """Have a denoiser's blocks compiled when they are first used, from now on, for sampling and training alike.

    Every way a block is used - by the merged model, the policy and the reference, and for each kind of batch - is
    compiled by itself.

    Args:
        options: of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    for child in denoiser.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            if block._compiled_call_impl is None:
                block.compile(**options)
