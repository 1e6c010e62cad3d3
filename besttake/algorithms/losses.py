"""The DPO family as pure functions of denoising errors, and the one function that measures those errors.

Notation: l = mean squared error of the network's prediction at time t, one number per clip; w = l_theta - l_ref of the
winner, v of a loser. w < 0 says that the policy has got better at the winner than its reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from besttake.models.policy import Policy
from besttake.models.sharding import reset_after_failure, reshard_after_recompute
from besttake.runtime.configuration import require
from besttake.runtime.distributed import all_gather_rows, shard_rows
from besttake.runtime.memory import forget
from besttake.types import Condition, Latent, Time

T = TypeVar("T")
log = logging.getLogger(__name__)

Clips = Float[Tensor, "b k c f h w"]
"""Latents of `k` clips of each of `b` prompts: the winner first, then its losers."""


@dataclass(frozen=True)
class Errors:
    """Mean squared prediction errors, float32 (b, k), of the same clips, noise and times.

    `distance` is the mean squared difference of the two predictions, (b, k): how far policy and reference are apart.
    """

    policy: Float[Tensor, "b k"]
    reference: Float[Tensor, "b k"]
    distance: Float[Tensor, "b k"]


def denoising_errors(
    policy: Policy, clips: Clips, condition: Condition, t: Time, noise: Float[Tensor, "b c f h w"]
) -> Errors:
    """Errors of policy and reference on clips that share, row by row, their time `t` (b,) and their noise."""
    b, k = clips.shape[:2]
    mine = torch.tensor(
        shard_rows(b * k), device=clips.device
    )  # of several processes each takes its share of the clips
    x_0, flat_noise, flat_t = clips.flatten(0, 1)[mine], noise[mine // k], t[mine // k]
    condition_rows = {name: value[mine // k] for name, value in condition.items()}
    schedule = policy.model.schedule
    x_t, target = schedule.add_noise(x_0, flat_noise, flat_t), schedule.target(x_0, flat_noise, flat_t)
    prediction, reference = predictions(policy, x_t, flat_t, condition_rows)
    each = (prediction - target, reference - target, prediction.detach() - reference)
    return Errors(*(all_gather_rows(_mean_square(difference), b * k).view(b, k) for difference in each))


def predictions(policy: Policy, x_t: Latent, t: Time, condition: Condition) -> tuple[Latent, Latent]:
    """What policy and reference predict, float32, of `policy.micro_batch_size` clips at a time: the *split backward*.

    No part but the last keeps what its backward pass needs: when the loss says what each clip's error weighs, the last
    part goes backward first, and every other is then predicted once more and goes backward alone. Activations never
    take more memory than those of one part, at the cost of one forward pass more for each part but one.

    Where memory runs out, going forward or backward, that is done again with half as many clips at once.
    """
    policy.model.to_device()

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
        forget(error)
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


def sampled_errors(
    policy: Policy,
    clips: Clips,
    condition: Condition,
    generator: torch.Generator,
    low: float = 0.0,
    high: float = 1.0,
    timesteps_per_pair: int = 1,
) -> Errors:
    """`denoising_errors` at times in [`low`, `high`] and with noise drawn from `generator`, `draws` of each per row.

    More draws are averaged before the loss, each with its own share of the schedule's times. DPO's log-ratio is an
    expectation over time and noise; from one draw it is mostly noise.
    """
    b, k = clips.shape[:2]
    part = torch.arange(timesteps_per_pair).repeat_interleave(b)
    u = (part + torch.rand(b * timesteps_per_pair, generator=generator)) / timesteps_per_pair
    times = policy.model.schedule_for(clips.shape).times(u, low, high)
    rows = clips.repeat(timesteps_per_pair, *[1] * (clips.ndim - 1))
    condition_rows = {
        name: value.repeat(timesteps_per_pair, *[1] * (value.ndim - 1)) for name, value in condition.items()
    }
    noise = draw_noise(rows[:, 0].shape, generator, like=clips)
    errors = denoising_errors(policy, rows, condition_rows, times.to(clips.device), noise)
    each = (errors.policy, errors.reference, errors.distance)
    return Errors(*(error.view(timesteps_per_pair, b, k).mean(0) for error in each))


def sft_error(policy: Policy, x_0: Tensor, condition: Condition, t: Time, noise: Tensor) -> Float[Tensor, "b"]:
    """The plain diffusion loss of each clip."""
    schedule, mine, rows = policy.model.schedule, shard_rows(len(x_0)), len(x_0)
    x_0, noise, t = x_0[mine], noise[mine], t[mine]
    condition_rows = {name: value[mine] for name, value in condition.items()}
    prediction = predictions(policy, schedule.add_noise(x_0, noise, t), t, condition_rows)[0]
    return all_gather_rows(_mean_square(prediction - schedule.target(x_0, noise, t)), rows)


def check_dpo(beta: float, dpop_weight: float, timesteps_per_pair: int) -> None:
    """Refuse settings of a DPO loss that mean nothing."""
    require(beta > 0, "beta", beta, "a number above 0")
    require(dpop_weight >= 0, "dpop_weight", dpop_weight, "0 or more")
    require(timesteps_per_pair >= 1, "timesteps_per_pair", timesteps_per_pair, "1 or more")


def dpo(errors: Errors, beta: float, dpop_weight: float = 0.0) -> tuple[Float[Tensor, "b"], dict[str, Tensor]]:
    """Diffusion-DPO (Wallace et al. 2023, equation 14) with one or more losers per winner, as in RealDPO.

    L = sum_n -log sigmoid(-beta/2 (w - v_n)): ln 2 per loser while policy and reference are equal. On rectified flow
    the errors are of the velocity and beta is constant, as Flow-DPO (Liu et al. 2025) recommends.

    Losers are summed; RealDPO's public code averages them. The sum is N times the average of N losers, with the same
    beta inside the sigmoid: docs/realdpo.md tells what that changes.

    With a `guard` > 0, DPO-Positive (Pal et al. 2024): -beta/2 guard max(0, w) is added to each margin. A loser's error
    grows without end, and may take the winner's along, as long as it grows faster; this stops the winner's.

    Returns:
        The loss of each row, and what to watch: the winner's and the losers' errors apart (a loser's error may grow
        alone, or drag the winner's along), margin, implicit accuracy, and the distance to the reference.
    """
    gain = errors.policy - errors.reference
    w, v = gain[:, :1], gain[:, 1:]
    margin = -beta / 2 * (w - v)
    metrics = {
        "dpo/winner_error": errors.policy[:, 0].mean(),
        "dpo/loser_error": errors.policy[:, 1:].mean(),
        "dpo/winner_gain": -w.mean(),
        "dpo/loser_gain": -v.mean(),
        "dpo/margin": margin.mean(),
        "dpo/implicit_accuracy": (margin > 0).float().mean(),
        "dpo/reference_distance": errors.distance.mean(),
    }
    guarded = margin - beta / 2 * dpop_weight * w.clamp(min=0)
    return -F.logsigmoid(guarded).sum(1), {name: value.detach() for name, value in metrics.items()}


def _mean_square(x: Tensor) -> Float[Tensor, "b"]:
    return x.square().flatten(1).mean(1)


def draw_noise(shape: tuple[int, ...] | torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal noise, drawn on the CPU so that it is the same on every device."""
    return torch.randn(shape, generator=generator).to(like)
