"""Pieces of the sampling loop: scheduler steps, classifier-free guidance, and x_0 extrapolation.

Network evaluations are nearly all of the cost of sampling. So the network may be evaluated at only some of the
scheduler's steps; at the others x_0 is extrapolated from the last two predictions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from besttake.models import VideoModel
from besttake.models.base import swap_frames_and_channels
from besttake.models.schedules import Schedule, like
from besttake.sampling.step_cache import CachedPredict
from besttake.types import Condition, Latent, Time


def evaluation_steps(evaluations: int, steps: int) -> set[int]:
    """Indices of the steps that evaluate the network: the first, the last, and more at high noise than at low noise.

    At high noise, where the layout of a video forms, the prediction changes most.
    """
    if evaluations >= steps:
        return set(range(steps))
    places: list[int] = []
    for k in range(evaluations):
        place = round((steps - 1) * (k / (evaluations - 1)) ** 1.5)
        places.append(max(place, places[-1] + 1) if places else place)
    return set(places)


@dataclass(frozen=True)
class Guidance:
    """Conditions and scale of classifier-free guidance.

    Attributes:
        negative: the negative condition, for one row; None = no guidance.
        one_pass: whether both predictions are computed in one pass of twice the batch size.
    """

    condition: Condition
    negative: Condition | None
    scale: float
    one_pass: bool


def predict_with_guidance(predict: CachedPredict, x_t: Latent, t: Time, guidance: Guidance) -> Latent:
    """The network's prediction, in float32, with classifier-free guidance (Ho and Salimans 2022)."""
    condition, negative = guidance.condition, guidance.negative
    if negative is None:
        return predict("conditional", x_t, t, condition)
    negative = condition | {name: value.expand_as(condition[name]) for name, value in negative.items()}
    if guidance.one_pass:
        both = {name: torch.cat([value, negative[name]]) for name, value in condition.items()}
        conditional, unconditional = predict("both", torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
    else:
        conditional = predict("conditional", x_t, t, condition)
        unconditional = predict("unconditional", x_t, t, negative)
    return unconditional + guidance.scale * (conditional - unconditional)


class X0Extrapolation:
    """Linear extrapolation of the last two x_0 predictions, which replaces an evaluation of the network.

    Along a sampling trajectory the predicted x_0 is nearly linear in time. (The raw prediction is, too, but with a
    stochastic sampler it refers to noise that has been replaced.)
    """

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.predicted_x0: list[tuple[Time, Latent]] = []

    def add(self, prediction: Latent, x_t: Latent, t: Time) -> None:
        """Store an evaluation of the network."""
        self.predicted_x0 = [*self.predicted_x0[-1:], (t, self.schedule.split(prediction, x_t, t)[0])]

    def __call__(self, x_t: Latent, t: Time) -> Latent:
        """The prediction at a later `x_t`."""
        (t_1, early), (t_2, late) = self.predicted_x0[0], self.predicted_x0[-1]
        ahead = like((t - t_2) / (t_2 - t_1), x_t) if t_1[0] > t_2[0] else 0.0
        x_0 = late + ahead * (late - early)
        alpha, sigma = (like(scale, x_t) for scale in self.schedule.alpha_sigma(t))
        return self.schedule.target(x_0, (x_t - alpha * x_0) / sigma, t)


def add_noise(model: VideoModel, scheduler: Any, x_0: Latent, noise: Latent, timestep: Tensor) -> Latent:
    """Noised latents at a timestep of a diffusers scheduler, by the scheduler's `add_noise` if it has one."""
    timesteps = timestep.expand(len(x_0))
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(x_0, noise, timesteps)
    return model.schedule.add_noise(x_0, noise, model.schedule.time(timesteps))


class SchedulerStep:
    """Step function of a diffusers scheduler: prediction, timestep and latents to the next latents."""

    def __init__(self, scheduler: Any, generators: Sequence[torch.Generator]):
        """
        Args:
            generators: a generator per row, for stochastic samplers.
        """
        self.scheduler, self.generators = scheduler, list(generators)
        self._is_dpm = "old_pred_original_sample" in inspect.signature(scheduler.step).parameters
        self._previous: list[Any] = [None, None]  # of CogVideoX's DPM: the predicted x_0, and its timestep

    def __call__(self, prediction: Tensor, timestep: Tensor, x: Latent) -> Latent:
        if not self._is_dpm:
            return self.scheduler.step(prediction, timestep, x, return_dict=False)[0]
        args = (
            swap_frames_and_channels(prediction),
            self._previous[0],
            timestep,
            self._previous[1],
            swap_frames_and_channels(x),
        )
        x, predicted_x0 = self.scheduler.step(*args, generator=self.generators)
        self._previous = [predicted_x0, timestep]
        return swap_frames_and_channels(x)
