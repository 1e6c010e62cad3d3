"""Regional compilation: torch.compile of a denoiser's repeated blocks, which share the compiled code.

A checkpointed block is compiled together with its checkpointing, so that the compiler knows what is computed again and
leaves out what the backward pass does not need.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from besttake.models.quantization import blocks

log = logging.getLogger(__name__)

RECOMPILE_LIMIT = 32
"""Variants of a block's code that are compiled; PyTorch's default of 8 is too few for all of a run's passes."""


def compile_blocks(denoiser: Any, **options: Any) -> None:
    """Have a denoiser's blocks compiled when they are first run. If that fails, they run uncompiled, with a warning.

    They are compiled anew for each kind of pass: with and without gradients, for each adapter (or merged weights), and
    for each batch size until the second, after which the batch size is dynamic.

    Args:
        options: of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for block in blocks(denoiser):
        if block._compiled_call_impl is None:
            block._compiled_call_impl = _Compiled(denoiser, block._call_impl, options)
    checkpointing: Any = getattr(denoiser, "_gradient_checkpointing_func", None)
    hooks = any(block._forward_pre_hooks for block in blocks(denoiser))  # must run again when a block is recomputed
    if denoiser.gradient_checkpointing and not hooks and not isinstance(checkpointing, _CompiledCheckpointing):
        denoiser.enable_gradient_checkpointing(_CompiledCheckpointing(denoiser, checkpointing, options))


def is_compiled(denoiser: Any) -> bool:
    """Whether `compile_blocks` is in effect."""
    return any(block._compiled_call_impl is not None for block in blocks(denoiser))


def stop_compiling(denoiser: Any) -> dict[str, Any] | None:
    """Undo `compile_blocks`; the options it was called with, or None if it was not."""
    options = None
    for block in blocks(denoiser):
        options, block._compiled_call_impl = getattr(block._compiled_call_impl, "options", None), None
    checkpointing = getattr(denoiser, "_gradient_checkpointing_func", None)
    if isinstance(checkpointing, _CompiledCheckpointing):
        denoiser.enable_gradient_checkpointing(checkpointing.function)
    return options


class _Compiled:
    """A compiled function, which becomes the plain one again if it cannot be compiled."""

    def __init__(self, denoiser: Any, eager: Callable[..., Any], options: dict[str, Any]):
        self.denoiser, self.eager, self.options = denoiser, eager, options
        self.compiled = torch.compile(eager, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tuple(map(_contiguous, args)), {name: _contiguous(value) for name, value in kwargs.items()}
        try:
            return self.compiled(*args, **kwargs)
        except TorchDynamoException as error:
            reason = " ".join(str(error).splitlines()[:2]) or type(error).__name__
            log.warning("the denoiser's blocks cannot be compiled and run uncompiled (%s)", reason)
            stop_compiling(self.denoiser)
            return self.eager(*args, **kwargs)


class _CompiledCheckpointing(_Compiled):
    """A checkpointing function, `function(block, *inputs)`, compiled together with the block that it runs."""

    def __init__(self, denoiser: Any, function: Callable[..., Any], options: dict[str, Any]):
        self.function = function
        super().__init__(denoiser, lambda block, *args: function(block._call_impl, *args), options)


def _contiguous(leaf: Any) -> Any:
    """A tensor with the strides of a new one. The first block's inputs are often parts of another tensor, and would
    have code of their own, since compiled code is for given strides, even those of dimensions of size 1."""
    return leaf.contiguous().flatten().view_as(leaf) if isinstance(leaf, Tensor) else leaf
