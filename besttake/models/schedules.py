"""Noise schedules of video diffusion: v-prediction DDPM and rectified flow.

Both use `x_t = alpha(t) x_0 + sigma(t) noise`, where t = 0 is data and t = 1 noise. Sampling and training share the
schedule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from besttake.types import Latent, Time


class Schedule(ABC):
    """A noise process and the prediction target of its network."""

    @abstractmethod
    def alpha_sigma(self, t: Time) -> tuple[Time, Time]:
        """Scales of data and noise at time `t`, float32 (b,) each."""

    @abstractmethod
    def target(self, x_0: Latent, noise: Latent, t: Time) -> Latent:
        """The prediction target of the network at time `t`."""

    @abstractmethod
    def split(self, prediction: Latent, x_t: Latent, t: Time) -> tuple[Latent, Latent]:
        """The (x_0, noise) that a prediction at `x_t` implies."""

    @abstractmethod
    def times(self, u: Tensor, low: float = 0.0, high: float = 1.0) -> Time:
        """Training times in [low, high] as quantiles `u` in [0, 1) of this schedule's distribution.

        Raises:
            ValueError: there are no training times in [low, high].
        """

    @abstractmethod
    def timestep(self, t: Time) -> Tensor:
        """The network's timestep input for time `t`."""

    @abstractmethod
    def time(self, timestep: Tensor) -> Time:
        """The time of a sampler's timestep: the inverse of `timestep`."""

    def sample_times(self, n: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Time:
        """`n` random training times in [low, high]; ValueError if there are none in that range."""
        return self.times(torch.rand(n, generator=generator), low, high)

    def add_noise(self, x_0: Latent, noise: Latent, t: Time) -> Latent:
        """x_t, the noised latents."""
        alpha, sigma = self.alpha_sigma(t)
        return like(alpha, x_0) * x_0 + like(sigma, x_0) * noise


class VPrediction(Schedule):
    """Variance-preserving DDPM with v-prediction, v = alpha noise - sigma x_0 (Salimans and Ho 2022, section 4).

    Time is discrete: t = (k + 1) / K is timestep k of K, t = 0 is clean data.

    Args:
        alphas_cumprod: (K,) products of the alphas, ending in 0 for zero terminal SNR (Lin et al. 2024).
    """

    def __init__(self, alphas_cumprod: Tensor):
        self.alphas_cumprod = torch.cat([torch.ones(1), alphas_cumprod.float().cpu()])

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod) - 1

    def alpha_sigma(self, t: Time) -> tuple[Time, Time]:
        alpha_bar = self.alphas_cumprod.to(t.device)[(t * self.steps).round().long()]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def target(self, x_0: Latent, noise: Latent, t: Time) -> Latent:
        alpha, sigma = self.alpha_sigma(t)
        return like(alpha, x_0) * noise - like(sigma, x_0) * x_0

    def split(self, prediction: Latent, x_t: Latent, t: Time) -> tuple[Latent, Latent]:
        alpha, sigma = (like(scale, x_t) for scale in self.alpha_sigma(t))
        return alpha * x_t - sigma * prediction, sigma * x_t + alpha * prediction

    def times(self, u: Tensor, low: float = 0.0, high: float = 1.0) -> Time:
        """Uniform over the discrete times in (low, high]."""
        first, last = (math.floor(round(bound * self.steps, 6)) for bound in (low, high))  # .57 * 100 is 56.99...
        if not 0 <= first < last <= self.steps:
            raise ValueError(
                f"no training time in ({low}, {high}]: expected a range within [0, 1], of 1/{self.steps} at least"
            )
        return (first + 1 + (u * (last - first)).long().clamp(max=last - first - 1)) / self.steps  # rounded, u may be 1

    def timestep(self, t: Time) -> Tensor:
        return (t * self.steps).round().long() - 1

    def time(self, timestep: Tensor) -> Time:
        return (timestep.float() + 1) / self.steps


class RectifiedFlow(Schedule):
    """Straight paths x_t = (1 - t) x_0 + t noise; the network predicts the velocity noise - x_0 (Liu et al. 2022).

    Args:
        shift: training times are shift u / (1 + (shift - 1) u) for uniform u; larger = more noise.
        scale: the network's timestep is `scale * t`.
        to_data: the network predicts x_0 - noise instead (Open-Sora, Mochi).
        backwards: the network's timestep is `scale * (1 - t)` instead (Mochi).
    """

    def __init__(self, shift: float = 1.0, scale: float = 1000.0, *, to_data: bool = False, backwards: bool = False):
        self.shift, self.scale, self.backwards = shift, scale, backwards
        self.sign = -1.0 if to_data else 1.0

    def alpha_sigma(self, t: Time) -> tuple[Time, Time]:
        t = t.float()
        return 1 - t, t

    def target(self, x_0: Latent, noise: Latent, t: Time) -> Latent:
        return self.sign * (noise - x_0)

    def split(self, prediction: Latent, x_t: Latent, t: Time) -> tuple[Latent, Latent]:
        time, velocity = like(t.float(), x_t), self.sign * prediction
        return x_t - time * velocity, x_t + (1 - time) * velocity

    def times(self, u: Tensor, low: float = 0.0, high: float = 1.0) -> Time:
        """Shifted uniform times; `low` and `high` bound the time itself, not the uniform number behind it."""
        if not 0 <= low < high <= 1:
            raise ValueError(f"no training time in [{low}, {high}]: expected a range within [0, 1]")
        lower, upper = self._unshift(low), self._unshift(high)
        u = lower + (upper - lower) * u
        return self.shift * u / (1 + (self.shift - 1) * u)

    def _unshift(self, t: float) -> float:
        return t / (self.shift - (self.shift - 1) * t)

    def timestep(self, t: Time) -> Tensor:
        return (1 - t if self.backwards else t) * self.scale

    def time(self, timestep: Tensor) -> Time:
        t = timestep.float() / self.scale
        return 1 - t if self.backwards else t


def like(scale: Time, x: Tensor) -> Tensor:
    """Reshape (b,) to (b, 1, 1, ...), so that it broadcasts with `x`."""
    return scale.to(x.device).view(-1, *[1] * (x.ndim - 1))
