"""Gradient checkpointing of a denoiser's blocks: what a block keeps of its forward pass for the backward pass.

With `full` only its inputs are kept, and the backward pass computes the block again. With `selective` the outputs of
its attention are kept too, which takes the largest part of a block's time and a small part of its memory (PyTorch's
selective activation checkpointing). The gradients are those without checkpointing. Nothing in a block is random, so
that no random state is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

GradientCheckpointing = Literal["none", "selective", "full", "auto"]

LEVELS: tuple[GradientCheckpointing, ...] = ("none", "selective", "full")
"""From the fastest to the one that needs the least memory."""

ATTENTION = ("attention", "attn", "flash_fwd")
"""Parts of the names of attention operations, of PyTorch and of other libraries."""


def set_gradient_checkpointing(denoiser: Any, level: GradientCheckpointing) -> None:
    """Set what a denoiser's blocks keep; compiled blocks are then compiled anew.

    Args:
        level: `auto` is for the plan to replace; here it is `full`.
    """
    if level == "none":
        denoiser.disable_gradient_checkpointing()
    else:
        denoiser.enable_gradient_checkpointing(keep_attention if level == "selective" else keep_inputs)


def keep_inputs(block: nn.Module, *args: Any) -> Any:
    """Run a block of which only the inputs are kept."""
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)


def keep_attention(block: nn.Module, *args: Any) -> Any:
    """Run a block of which the inputs and the outputs of attention are kept."""
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)


def _keep(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_attention(operation) else CheckpointPolicy.PREFER_RECOMPUTE


@cache
def is_attention(operation: Any) -> bool:
    """Whether an operation is the forward pass of an attention kernel."""
    name = str(operation)
    return "backward" not in name and any(word in name for word in ATTENTION)


_contexts: Callable[[], Any] = partial(create_selective_checkpoint_contexts, _keep)
