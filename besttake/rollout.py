"""Sampling videos: the one loop that every algorithm, evaluation and command uses.

The sampler is the diffusers scheduler the model's users deploy with, so that rollouts are on-policy; noise is keyed
on (seed, step, prompt, candidate), so that one process and eight shoot the same takes.
"""

from __future__ import annotations

import zlib
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from besttake.models import VideoModel
from besttake.policy import Policy
from besttake.types import Condition, Latent, Video


@dataclass(frozen=True)
class RolloutConfig:
    """How videos are sampled."""

    steps: int = 16
    """Sampling steps."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 = none, at half the cost."""
    frames: int | None = None
    """Frames of a clip; by default the model's own, as are height and width (in pixels)."""
    height: int | None = None
    width: int | None = None
    batch: int = 16
    """Videos denoised at once."""

    def __post_init__(self):
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("frames", "height", "width"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"rollout.{name} is {size}; it must be at least 1, or left out for the model's own")

    def size(self, model: VideoModel) -> tuple[int, int, int]:
        """Frames, height and width, the model's own where none were asked for."""
        asked = (self.frames, self.height, self.width)
        frames, height, width = (a or b for a, b in zip(asked, model.default_size(), strict=True))
        return frames, height, width


@dataclass(frozen=True)
class Rollout:
    """`n` takes of each of `p` prompts; rows are grouped by prompt: p0 take 0, p0 take 1, ..., p1 take 0, ..."""

    latents: Latent
    videos: Video
    prompts: list[str]
    condition: Condition
    n: int


@torch.no_grad()
def generate(
    shooter: Policy | VideoModel,
    prompts: list[str],
    config: RolloutConfig,
    *,
    n: int = 1,
    seed: tuple[int, ...] = (0,),
    decode: bool = True,
) -> Rollout:
    """Shoot `n` takes of every prompt.

    Args:
        shooter: a policy, or a model without one.
        seed: with the prompt and the number of the take, the key of its noise.
        decode: whether to turn latents into videos; otherwise `videos` is empty.

    Raises:
        ValueError: a prompt is empty or too long, or the model cannot take the size asked for.
    """
    model = shooter.model if isinstance(shooter, Policy) else shooter
    shape = model.latent_shape(*config.size(model))
    rows = [prompt for prompt in prompts for _ in range(n)]
    noise = torch.stack([keyed_noise(shape, *seed, zlib.crc32(p.encode()), k) for p in prompts for k in range(n)])
    unique = model.encode_prompts(prompts)
    condition = {name: value.repeat_interleave(n, 0) for name, value in unique.items()}
    negative = model.encode_negative(1) if config.guidance != 1 else None
    latents, videos = [], []
    with shooter.merged() if isinstance(shooter, Policy) else nullcontext():
        for start in range(0, len(rows), config.batch):
            part = slice(start, start + config.batch)
            told = {name: value[part] for name, value in condition.items()}
            latents.append(denoise(shooter, noise[part].to(model.device), told, config, negative))
            videos.append(model.decode(latents[-1]).float().clamp(-1, 1) if decode else torch.empty(0))
    return Rollout(torch.cat(latents), torch.cat(videos), rows, condition, n)


@torch.no_grad()
def denoise(
    shooter: Policy | VideoModel, noise: Latent, condition: Condition, config: RolloutConfig, negative: Condition | None
) -> Latent:
    """From noise to latents, guided away from `negative` if the guidance scale is not 1."""
    model = shooter.model if isinstance(shooter, Policy) else shooter
    sampler = model.sampler(config.steps)
    x = noise * getattr(sampler, "init_noise_sigma", 1.0)  # flow samplers have none
    for timestep in sampler.timesteps:
        t = model.schedule.time(timestep).expand(len(x))
        x_t = sampler.scale_model_input(x, timestep) if hasattr(sampler, "scale_model_input") else x
        prediction = _predict(shooter, x_t, t, condition).float()
        if negative is not None:
            away = {name: value.expand_as(condition[name]) for name, value in negative.items()}
            unguided = _predict(shooter, x_t, t, away).float()
            prediction = unguided + config.guidance * (prediction - unguided)
        x = sampler.step(prediction, timestep, x, return_dict=False)[0]
    return x


def _predict(shooter: Policy | VideoModel, x_t: Latent, t: Tensor, condition: Condition) -> Latent:
    if isinstance(shooter, Policy):
        return shooter.predict(x_t, t, condition)
    return shooter.predict(shooter.denoiser, x_t, t, condition)


def keyed_noise(shape: tuple[int, ...], *key: int) -> Tensor:
    """Standard normal noise that depends on the key alone: not on rank, batch or draws before."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.randn(shape, generator=torch.Generator().manual_seed(state))
