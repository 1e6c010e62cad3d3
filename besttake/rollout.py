"""Sampling videos: the one loop that every algorithm, evaluation and command uses.

The sampler is the diffusers scheduler the model's users deploy with, so that rollouts are on-policy; noise is keyed
on (seed, step, prompt, candidate), so that one process and eight shoot the same takes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from besttake.data.video import read_video
from besttake.distributed import gathered, share
from besttake.models import Size, VideoModel
from besttake.models.caches import CacheConfig, step_cache
from besttake.models.compiled import compile_blocks
from besttake.policy import Policy
from besttake.sampling import Course, Told, guided, noised, spread_out, stepper
from besttake.types import Condition, Latent, Prompt, Video


@dataclass(frozen=True)
class RolloutConfig:
    """How videos are sampled."""

    steps: int | None = None
    """Sampling steps; by default the model's own, as is all else that is left out."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 = none, at half the cost."""
    frames: int | None = None
    """Frames of a clip, whose height and width are in pixels."""
    height: int | None = None
    width: int | None = None
    batch: int = 16
    """Videos denoised at once; with guidance, both halves of a prediction are one pass where twice as many fit."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    guided: tuple[float, float] = (0.0, 1.0)
    """Diffusion times (1 = noise) within which there is guidance; outside them a step costs half."""
    asked: int | None = None
    """Steps at which the network is asked, by default all; at the others its last two answers are extrapolated."""
    compile: bool = False
    """Compile the network's blocks (torch.compile), in training too: minutes at the start, faster afterwards."""
    strength: float = 0.8
    """Of prompts with a source video: the share of the steps that it is noised back by, and taken again."""

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"rollout.batch is {self.batch}; it must be at least 1")
        for name in ("steps", "frames", "height", "width"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"rollout.{name} is {size}; it must be at least 1, or left out for the model's own")
        if not 0 <= self.guided[0] <= self.guided[1] <= 1:
            raise ValueError(f"rollout.guided is {self.guided}; expected two times in [0, 1], the smaller one first")
        if self.asked is not None and self.asked < 2:
            raise ValueError(f"rollout.asked is {self.asked}; it must be at least 2, or left out for all steps")
        if not 0 < self.strength <= 1:
            raise ValueError(f"rollout.strength is {self.strength}; a share of the steps lies in (0, 1]")

    def size(self, model: VideoModel) -> Size:
        """Frames, height and width, the model's own where none were asked for."""
        asked = (self.frames, self.height, self.width)
        frames, height, width = (a or b for a, b in zip(asked, model.default_size(), strict=True))
        return frames, height, width

    def condition(
        self, model: VideoModel, prompts: Sequence[str], generator: torch.Generator | None = None
    ) -> Condition:
        """What the denoiser is told in takes of these prompts; with a `generator`, in training on clips of them."""
        told = model.encode_prompts(prompts, self.size(model), generator)
        if model.embeds_guidance:
            told["guidance"] = torch.full((len(prompts),), self.scale(model), device=model.device)
        return told

    def asks(self, steps: int) -> set[int]:
        """Which of so many steps ask the network."""
        return spread_out(self.asked or steps, steps)

    def scale(self, model: VideoModel) -> float:
        """The guidance scale, the model's own if none was asked for."""
        return model.default_guidance if self.guidance is None else self.guidance


@dataclass(frozen=True)
class Rollout:
    """`n` takes of each of `p` prompts; rows are grouped by prompt: p0 take 0, p0 take 1, ..., p1 take 0, ...

    Of several processes each has decoded the `videos` of its own `share` of the rows; everything else is of all rows.
    """

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
    """Shoot `n` takes of every prompt; of several processes each shoots its share.

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
    draws = [keyed_generator(*seed, zlib.crc32(p.encode()), k) for p in prompts for k in range(n)]
    noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
    unique = config.condition(model, prompts)
    condition = {name: value.repeat_interleave(n, 0) for name, value in unique.items()}
    guided = config.scale(model) != 1 and not model.embeds_guidance
    negative = model.encode_negative(1) if guided else None
    source = encode_sources(model, prompts, config)
    mine = share(len(rows))
    parts = [mine[start : start + config.batch] for start in range(0, len(mine), config.batch)]
    latents = []
    model.wake()
    for denoiser in model.denoisers.values() if config.compile else ():
        compile_blocks(denoiser)
    with shooter.merged() if isinstance(shooter, Policy) else nullcontext():
        for part in parts:
            told = {name: value[part] for name, value in condition.items()}
            over = None if source is None else source.repeat_interleave(n, 0)[part]
            drawn = [draws[row] for row in part]
            latents.append(denoise(shooter, noise[part].to(model.device), told, config, negative, drawn, over))
    videos = torch.empty(0)
    if decode:
        frames = config.size(model)[0]
        with model.using("vae"):
            videos = torch.cat([model.decode(part, frames).float().clamp(-1, 1) for part in latents])
    return Rollout(gathered(torch.cat(latents), len(rows)), videos, rows, condition, n)


def encode_sources(model: VideoModel, prompts: Sequence[str], config: RolloutConfig) -> Latent | None:
    """Latents of the videos that takes are made over, if the prompts have one each."""
    sources = [prompt.source for prompt in prompts if isinstance(prompt, Prompt) and prompt.source]
    if not sources:
        return None
    if len(sources) < len(prompts):
        raise ValueError(f"{len(sources)} of {len(prompts)} prompts have a source video; expected all of them, or none")
    frames, height, width = config.size(model)
    with model.using("vae"):
        videos = (read_video(path, fps=model.fps, frames=frames, size=(height, width)) for path in sources)
        return torch.cat([model.encode(video[None].to(model.device)).float() for video in videos])


@torch.no_grad()
def denoise(
    shooter: Policy | VideoModel,
    noise: Latent,
    condition: Condition,
    config: RolloutConfig,
    negative: Condition | None,
    draws: Sequence[torch.Generator],
    source: Latent | None = None,
) -> Latent:
    """From noise, or from a noised `source`, to latents; guided away from `negative`.

    Args:
        draws: random numbers of each row, for samplers that add noise on the way.
    """
    model = shooter.model if isinstance(shooter, Policy) else shooter
    steps = config.steps or model.default_steps
    sampler = model.sampler(steps, noise.shape)
    x, first = noise * getattr(sampler, "init_noise_sigma", 1.0), 0  # flow samplers have none
    if source is not None:
        first = steps - max(1, int(steps * config.strength))
        x = noised(model, sampler, source, noise, sampler.timesteps[first])
    step, timesteps = stepper(sampler, draws), sampler.timesteps[first:]
    asked, course = config.asks(len(timesteps)), Course(model.schedule)
    predict = shooter.predict if isinstance(shooter, Policy) else partial(model.predict, model.denoiser)
    with step_cache(model.denoisers.values(), config.cache, predict) as ask:
        for i, timestep in enumerate(timesteps):
            t = model.schedule.time(timestep).expand(len(x))
            x_t = sampler.scale_model_input(x, timestep) if hasattr(sampler, "scale_model_input") else x
            if i in asked:
                away = negative if config.guided[0] <= t[0] <= config.guided[1] else None
                told = Told(condition, away, config.scale(model), together=2 * len(x) <= config.batch)
                prediction = guided(ask, x_t, t, told)
                course.add(prediction, x_t, t)
            else:
                prediction = course(x_t, t)
            x = step(prediction, timestep, x)
    return model.with_known(x, condition)


def keyed_generator(*key: int) -> torch.Generator:
    """Random numbers that depend on the key alone: not on rank, batch or draws before."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(state)


def keyed_noise(shape: tuple[int, ...], *key: int) -> Tensor:
    """Standard normal noise that depends on the key alone."""
    return torch.randn(shape, generator=keyed_generator(*key))
