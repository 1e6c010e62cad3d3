"""torch.compile of a denoiser's repeated blocks, which share the compiled code."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def compile_blocks(denoiser: nn.Module, **options: Any) -> None:
    """Have a denoiser's blocks compiled on first use, for sampling and training.

    They are recompiled for every way of use: merged LoRA, policy, reference, and each batch shape.

    Args:
        options: of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    for child in denoiser.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            if block._compiled_call_impl is None:
                block.compile(**options)
