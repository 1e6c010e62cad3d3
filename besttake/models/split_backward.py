"""Policy and reference on the clips of a loss, a micro-batch at a time: the *split backward*.

Micro-batches are half as large from where memory runs out, going forward or backward.
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
from besttake.runtime.memory import free_memory
from besttake.types import Condition, Latent, Time

T = TypeVar("T")
log = logging.getLogger(__name__)


def predict_both(policy: Policy, x_t: Latent, t: Time, condition: Condition) -> tuple[Latent, Latent]:
    """What policy and reference predict, float32, of `policy.micro_batch_size` clips at a time: the *split backward*.

    No part but the last keeps what its backward pass needs: when the loss says what each clip's error weighs, the last
    part goes backward first, and every other is then predicted once more and goes backward alone. Activations never
    take more memory than those of one part, at the cost of one forward pass more for each part but one.

    Where memory runs out, going forward or backward, that is done again with half as many clips at once.
    """
    policy.model.parts.to_device()

    def predict() -> tuple[Latent, Latent]:
        size = policy.micro_batch(len(x_t))
        reference = [policy.reference.predict(*part).float() for part in _parts(size, x_t, t, condition)]
        wanted = torch.empty(0, requires_grad=torch.is_grad_enabled())  # nothing else that goes in has a gradient
        return _SplitBackward.apply(policy, x_t, t, condition, wanted), torch.cat(reference)

    return _in_the_memory_there_is(policy, predict)


class _SplitBackward(torch.autograd.Function):
    """The policy's predictions. Their backward pass adds to the gradients of the weights by itself, part by part."""

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
            held, ctx.held = ctx.held, None  # of what has failed, nothing is kept
            size = policy.micro_batch(len(gradient))
            parts = list(zip(_parts(size, *ctx.seen), gradient.split(size), strict=True))
            with _as_before_if_it_fails(policy.trainable.values()) if policy.can_halve else nullcontext():
                if held is not None and len(held) == len(parts[-1][1]):
                    torch.autograd.backward(held, parts.pop()[1])
                held = None
                for part, upstream in reversed(parts):
                    recompute(policy, part, upstream)

        _in_the_memory_there_is(policy, go_back)
        return None, None, None, None, None


def recompute(policy: Policy, part: tuple[Latent, Time, Condition], upstream: Tensor) -> None:
    """Predict a part's clips once more, and add to the gradients of the weights what follows from that of these."""
    with torch.enable_grad(), reshard_after_recompute(policy.model.denoiser):
        prediction = policy.predict(*part).float()
    torch.autograd.backward(prediction, upstream)


def _parts(size: int, x_t: Latent, t: Time, condition: Condition) -> list[tuple[Latent, Time, Condition]]:
    slices = [slice(start, start + size) for start in range(0, len(x_t), size)]
    return [(x_t[part], t[part], {name: value[part] for name, value in condition.items()}) for part in slices]


def _in_the_memory_there_is(policy: Policy, work: Callable[[], T]) -> T:
    """What `work` gives; where memory runs out, it is done again with half as many clips at once, from then on."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        clips = policy.oom_micro_batch(error)
        if not clips:
            raise
        free_memory(error)
    reset_after_failure(policy.model.denoiser)
    _drop_what_is_queued(policy.model.device)
    policy.micro_batch_size = clips // 2
    log.warning("memory has run out with %d clips of the loss at once: from now on %d", clips, clips // 2)
    return _in_the_memory_there_is(policy, work)


def _drop_what_is_queued(device: torch.device) -> None:
    """Have PyTorch's engine drop what it had still to do when a backward pass within another failed, and its memory.

    It looks through its queue whenever there is a backward pass to do, however small.
    """
    torch.zeros((), device=device, requires_grad=True).backward()


@contextmanager
def _as_before_if_it_fails(weights: Iterable[Tensor]) -> Iterator[None]:
    """Put the weights' gradients, sums of earlier losses perhaps, back to what they were if the work within fails."""
    before = [(weight, None if weight.grad is None else weight.grad.clone()) for weight in weights]
    try:
        yield
    except (RuntimeError, MemoryError):
        for weight, gradient in before:
            weight.grad = gradient
        raise
