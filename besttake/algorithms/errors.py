"""Denoising errors of policy and reference, the inputs of the losses."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from besttake.algorithms.losses import Clips, Errors
from besttake.models.policy import Policy
from besttake.models.split_backward import predict_both
from besttake.runtime.distributed import all_gather_rows, shard_rows
from besttake.types import Condition, Time


def denoising_errors(
    policy: Policy, clips: Clips, condition: Condition, t: Time, noise: Float[Tensor, "b c f h w"]
) -> Errors:
    """Errors of policy and reference; the clips of a row share their time `t` (b,) and their noise."""
    b, k = clips.shape[:2]
    mine = torch.tensor(shard_rows(b * k), device=clips.device)  # this process's shard of the clips
    x_0, flat_noise, flat_t = clips.flatten(0, 1)[mine], noise[mine // k], t[mine // k]
    condition_rows = {name: value[mine // k] for name, value in condition.items()}
    schedule = policy.model.schedule
    x_t, target = schedule.add_noise(x_0, flat_noise, flat_t), schedule.target(x_0, flat_noise, flat_t)
    prediction, reference = predict_both(policy, x_t, flat_t, condition_rows)
    each = (prediction - target, reference - target, prediction.detach() - reference)
    return Errors(*(all_gather_rows(_mean_square(difference), b * k).view(b, k) for difference in each))


def sampled_errors(
    policy: Policy,
    clips: Clips,
    condition: Condition,
    generator: torch.Generator,
    low: float = 0.0,
    high: float = 1.0,
    timesteps_per_pair: int = 1,
) -> Errors:
    """`denoising_errors` at random times in [`low`, `high`] with random noise.

    Errors are averaged over `timesteps_per_pair` draws of time and noise, stratified over the schedule's times: DPO's
    log-ratio is an expectation over both, and a single draw is a very noisy estimate.
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
    """The diffusion loss of each clip."""
    schedule, mine, rows = policy.model.schedule, shard_rows(len(x_0)), len(x_0)
    x_0, noise, t = x_0[mine], noise[mine], t[mine]
    condition_rows = {name: value[mine] for name, value in condition.items()}
    prediction = predict_both(policy, schedule.add_noise(x_0, noise, t), t, condition_rows)[0]
    return all_gather_rows(_mean_square(prediction - schedule.target(x_0, noise, t)), rows)


def draw_noise(shape: tuple[int, ...] | torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal noise, drawn on the CPU so that it is the same on every device."""
    return torch.randn(shape, generator=generator).to(like)


def _mean_square(x: Tensor) -> Float[Tensor, "b"]:
    return x.square().flatten(1).mean(1)
