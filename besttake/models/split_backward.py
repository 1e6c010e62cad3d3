"""Predictions of policy and reference in micro-batches, with a backward pass that recomputes: the *split backward*.

If memory runs out in the forward or backward pass, it is repeated in smaller micro-batches, then with more gradient
checkpointing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from besttake.models.policy import Policy
from besttake.models.sharding import reset_after_failure, reshard_after_recompute
from besttake.runtime.memory import free_memory, out_of_memory
from besttake.types import Condition, Latent, Time

T = TypeVar("T")
log = logging.getLogger(__name__)


def predict_both(policy: Policy, x_t: Latent, t: Time, condition: Condition) -> tuple[Latent, Latent]:
    """Predictions of policy and reference in float32, `policy.micro_batch_size` clips at a time.

    Only the last micro-batch keeps its activations. The backward pass begins with it; every other micro-batch is
    predicted once more, then back-propagated. Activations never take more memory than one micro-batch, at the cost of
    one more forward pass for each micro-batch but one.

    If memory runs out in the forward or backward pass, it is repeated so that it needs less (`Policy.save_memory`).
    """
    policy.model.parts.to_device()

    def predict() -> tuple[Latent, Latent]:
        size = policy.micro_batch(len(x_t))
        reference = [policy.reference.predict(*part).float() for part in _parts(size, x_t, t, condition)]
        wanted = torch.empty(0, requires_grad=torch.is_grad_enabled())  # autograd needs an input with a gradient
        return _SplitBackward.apply(policy, x_t, t, condition, wanted), torch.cat(reference)

    return _saving_memory(policy, predict)


class _SplitBackward(torch.autograd.Function):
    """The policy's predictions. The backward pass accumulates weight gradients itself, one micro-batch at a time."""

    @staticmethod
    def forward(ctx: Any, policy: Policy, x_t: Latent, t: Time, condition: Condition, wanted: Tensor) -> Latent:
        *others, last = _parts(policy.micro_batch(len(x_t)), x_t, t, condition)
        found = [policy.predict(*part).float() for part in others]
        with torch.set_grad_enabled(wanted.requires_grad):
            held = policy.predict(*last).float()
        ctx.policy, ctx.seen, ctx.held = policy, (x_t, t, condition), held
        return torch.cat([*found, held.detach()])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        policy = ctx.policy

        def go_back() -> None:
            held, ctx.held = ctx.held, None  # freed if this fails
            size = policy.micro_batch(len(gradient))
            parts = list(zip(_parts(size, *ctx.seen), gradient.split(size), strict=True))
            with _restore_gradients_on_error(policy.trainable.values()) if policy.can_save_memory else nullcontext():
                if held is not None and len(held) == len(parts[-1][1]):
                    torch.autograd.backward(held, parts.pop()[1])
                held = None
                for part, upstream in reversed(parts):
                    recompute(policy, part, upstream)

        _saving_memory(policy, go_back)
        return None, None, None, None, None


def recompute(policy: Policy, part: tuple[Latent, Time, Condition], upstream: Tensor) -> None:
    """Predict a micro-batch again, and back-propagate `upstream`, the gradient of its prediction."""
    with torch.enable_grad(), reshard_after_recompute(policy.model.denoiser):
        prediction = policy.predict(*part).float()
    torch.autograd.backward(prediction, upstream)


def _parts(size: int, x_t: Latent, t: Time, condition: Condition) -> list[tuple[Latent, Time, Condition]]:
    slices = [slice(start, start + size) for start in range(0, len(x_t), size)]
    return [(x_t[part], t[part], {name: value[part] for name, value in condition.items()}) for part in slices]


def _saving_memory(policy: Policy, work: Callable[[], T]) -> T:
    """The result of `work`; if memory runs out, it is repeated so that it needs less (`Policy.save_memory`)."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not (policy.can_save_memory and out_of_memory(error)):
            raise
        free_memory(error)
    reset_after_failure(policy.model.denoiser)
    _clear_autograd_queue(policy.model.device)
    log.warning("out of memory %s", policy.save_memory())
    return _saving_memory(policy, work)


def _clear_autograd_queue(device: torch.device) -> None:
    """Clear the queue of PyTorch's autograd engine, and its memory, after a nested backward pass has failed.

    The engine clears it at the start of any backward pass.
    """
    torch.zeros((), device=device, requires_grad=True).backward()


@contextmanager
def _restore_gradients_on_error(weights: Iterable[Tensor]) -> Iterator[None]:
    """Context that restores the weights' accumulated gradients if it fails."""
    before = [(weight, None if weight.grad is None else weight.grad.clone()) for weight in weights]
    try:
        yield
    except (RuntimeError, MemoryError):
        for weight, gradient in before:
            weight.grad = gradient
        raise
