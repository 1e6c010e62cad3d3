"""From one step of sampling to the next: diffusers' schedulers, and what stands in for the network between two answers.

A step of a scheduler costs nothing, an answer of the network nearly everything. The sampler therefore takes all of its
steps, so that a take is what it would have been, and asks at some of them only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from besttake.models import VideoModel
from besttake.models.base import folded
from besttake.models.schedules import Schedule, like
from besttake.sampling.step_cache import Ask
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
    """Where a take is heading: the straight line through the x_0 that the network foresaw the last two times.

    Along its path that hardly bends, so at a step or two the line stands in for an answer of the network. (The raw
    prediction is nearly as straight, but where a sampler adds noise on the way, it is about noise that is gone.)
    """

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.foreseen: list[tuple[Time, Latent]] = []

    def add(self, prediction: Latent, x_t: Latent, t: Time) -> Latent:
        """Take an answer of the network into account; the x_0 that it foresees."""
        self.foreseen = [*self.foreseen[-1:], (t, self.schedule.split(prediction, x_t, t)[0])]
        return self.foreseen[-1][1]

    def keep(self, rows: list[int]) -> None:
        """Forget all but some rows."""
        self.foreseen = [(t[rows], x_0[rows]) for t, x_0 in self.foreseen]

    def __call__(self, x_t: Latent, t: Time) -> Latent:
        """The prediction that a later `x_t` would have got."""
        (t_1, early), (t_2, late) = self.foreseen[0], self.foreseen[-1]
        ahead = like((t - t_2) / (t_2 - t_1), x_t) if t_1[0] > t_2[0] else 0.0
        x_0 = late + ahead * (late - early)
        alpha, sigma = (like(scale, x_t) for scale in self.schedule.alpha_sigma(t))
        return self.schedule.target(x_0, (x_t - alpha * x_0) / sigma, t)


def noised(model: VideoModel, sampler: Any, x_0: Latent, noise: Latent, timestep: Tensor) -> Latent:
    """Latents as they are at a timestep of a diffusers scheduler, by its own `add_noise` if it has one."""
    timesteps = timestep.expand(len(x_0))
    if hasattr(sampler, "add_noise"):
        return sampler.add_noise(x_0, noise, timesteps)
    return model.schedule.add_noise(x_0, noise, model.schedule.time(timesteps))


class Stepper:
    """One step of a diffusers scheduler after another: prediction, timestep and latents to the next latents."""

    def __init__(self, sampler: Any, draws: Sequence[torch.Generator]):
        """
        Args:
            draws: random numbers of each row, for samplers that add noise on the way.
        """
        self.sampler, self.draws = sampler, list(draws)
        self._in_own_order = "old_pred_original_sample" in inspect.signature(sampler.step).parameters
        self._before: list[Any] = [None, None]  # of CogVideoX's DPM: the x_0 that was foreseen, and its timestep

    def __call__(self, prediction: Tensor, timestep: Tensor, x: Latent) -> Latent:
        if not self._in_own_order:
            return self.sampler.step(prediction, timestep, x, return_dict=False)[0]
        args = folded(prediction), self._before[0], timestep, self._before[1], folded(x)
        x, foreseen = self.sampler.step(*args, generator=self.draws)
        self._before = [foreseen, timestep]
        return folded(x)

    def keep(self, rows: list[int]) -> None:
        """Forget all but some rows: schedulers of higher order remember latents of the steps before."""
        for name, value in vars(self.sampler).items():
            setattr(self.sampler, name, _some_rows(value, rows))
        self._before, self.draws = _some_rows(self._before, rows), [self.draws[row] for row in rows]


def _some_rows(value: Any, rows: list[int]) -> Any:
    """Rows of latents (b, ., ., ., .), and of a list of such; all of anything else."""
    if isinstance(value, list):
        return [_some_rows(one, rows) for one in value]
    return value[rows] if isinstance(value, Tensor) and value.ndim == 5 else value
