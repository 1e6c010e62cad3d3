"""From one step of sampling to the next: diffusers' schedulers, and what stands in for the network between two answers.

A step of a scheduler costs nothing, an answer of the network nearly everything. The sampler therefore takes all of its
steps, so that a take is what it would have been, and asks at some of them only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from besttake.models import VideoModel
from besttake.models.base import folded
from besttake.models.caches import Ask
from besttake.types import Condition, Latent, Time


def spread_out(asked: int, steps: int) -> set[int]:
    """Which of so many steps ask the network: the first and the last, and more near the noise than near the data.

    There, where the layout of a take is settled, the prediction bends most.
    """
    if asked >= steps:
        return set(range(steps))
    places: list[int] = []
    for k in range(asked):
        place = round((steps - 1) * (k / (asked - 1)) ** 1.5)
        places.append(max(place, places[-1] + 1) if places else place)
    return set(places)


@dataclass(frozen=True)
class Told:
    """What the network is told, and what it is guided away from.

    Attributes:
        away: the negative condition of one row; None = no guidance.
        together: whether both go through the network in one pass, of twice as many rows.
    """

    condition: Condition
    away: Condition | None
    scale: float
    together: bool


def guided(ask: Ask, x_t: Latent, t: Time, told: Told) -> Latent:
    """What the network says, in float32, with classifier-free guidance (Ho and Salimans 2022)."""
    if told.away is None:
        return ask("told", x_t, t, told.condition)
    untold = told.condition | {name: value.expand_as(told.condition[name]) for name, value in told.away.items()}
    if told.together:
        both = {name: torch.cat([value, untold[name]]) for name, value in told.condition.items()}
        said, plain = ask("both", torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
    else:
        said, plain = ask("told", x_t, t, told.condition), ask("untold", x_t, t, untold)
    return plain + told.scale * (said - plain)


class Course:
    """The straight line through what the network said the last two times.

    Along its path the prediction of a diffusion model hardly bends, so a line stands in for it at a step or two. The
    sampler is the model's own all the same, and takes all of its steps.
    """

    def __init__(self) -> None:
        self.said: list[tuple[float, Latent]] = []

    def add(self, t: float, prediction: Latent) -> None:
        self.said = [*self.said[-1:], (t, prediction)]

    def __call__(self, t: float) -> Latent:
        """The prediction at time `t`; at the time it was last given, to the bit what was given."""
        (t_1, first), (t_2, second) = self.said[0], self.said[-1]
        return second if t == t_2 else second + (t - t_2) / (t_2 - t_1) * (second - first)


def noised(model: VideoModel, sampler: Any, x_0: Latent, noise: Latent, timestep: Tensor) -> Latent:
    """Latents as they are at a timestep of a diffusers scheduler, by its own `add_noise` if it has one."""
    timesteps = timestep.expand(len(x_0))
    if hasattr(sampler, "add_noise"):
        return sampler.add_noise(x_0, noise, timesteps)
    return model.schedule.add_noise(x_0, noise, model.schedule.time(timesteps))


def stepper(sampler: Any, draws: Sequence[torch.Generator]) -> Callable[[Tensor, Tensor, Latent], Latent]:
    """One step of a diffusers scheduler: prediction, timestep and latents to the next latents."""
    if "old_pred_original_sample" not in inspect.signature(sampler.step).parameters:
        return lambda prediction, timestep, x: sampler.step(prediction, timestep, x, return_dict=False)[0]
    before: list[Any] = [None, None]  # its second order needs the step before: the x_0 it foresaw, and its timestep

    def step(prediction: Tensor, timestep: Tensor, x: Latent) -> Latent:
        """CogVideoX's DPM solver, in its own order of axes, in which it draws noise."""
        args = folded(prediction), before[0], timestep, before[1], folded(x)
        x, foreseen = sampler.step(*args, generator=list(draws))
        before[:] = foreseen, timestep
        return folded(x)

    return step
