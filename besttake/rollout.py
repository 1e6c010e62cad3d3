"""Sampling videos: the one loop that every algorithm, evaluation and command uses.

The sampler is the diffusers scheduler the model's users deploy with, so that rollouts are on-policy; noise is keyed
on (seed, step, prompt, candidate), so that one process and eight shoot the same takes.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from besttake.data.video import read_video
from besttake.distributed import by_itself, gathered, share
from besttake.memory import forget, out_of_memory
from besttake.models import Size, VideoModel
from besttake.models.caches import CacheConfig, step_cache
from besttake.models.compiled import compile_blocks
from besttake.policy import Policy
from besttake.sampling import Course, Told, guided, noised, spread_out, stepper
from besttake.types import Condition, Latent, Prompt, Video

log = logging.getLogger(__name__)


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
    shared: float = 0.0
    """Share of the steps that a prompt's takes have in common, at the cost of one: they part there, each by a noise of
    its own, and are more alike."""
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
        if not 0 <= self.shared < 1:
            raise ValueError(f"rollout.shared is {self.shared}; a share of the steps lies in [0, 1)")
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
    unique = config.condition(model, prompts)
    condition = {name: value.repeat_interleave(n, 0) for name, value in unique.items()}
    guided = config.scale(model) != 1 and not model.embeds_guidance
    shoot = partial(_shoot, shooter, config, shape, model.encode_negative(1) if guided else None)
    source, strength = encode_sources(model, prompts, config), config.strength
    model.wake()
    for denoiser in model.denoisers.values() if config.compile else ():
        compile_blocks(denoiser)
    with shooter.merged() if isinstance(shooter, Policy) else nullcontext():
        if config.shared and source is None:
            strength = 1 - config.shared
            begun = shoot(unique, [keyed_generator(*seed, zlib.crc32(p.encode()), n) for p in prompts], to=strength)
            source = gathered(torch.cat(begun), len(prompts))
        draws = [keyed_generator(*seed, zlib.crc32(p.encode()), k) for p in prompts for k in range(n)]
        over = None if source is None else source.repeat_interleave(n, 0)
        latents = shoot(condition, draws, over, strength)
    videos = torch.empty(0)
    if decode:
        frames = config.size(model)[0]
        with model.using("vae"):
            videos = torch.cat([model.decode(part, frames).float().clamp(-1, 1) for part in latents])
    return Rollout(gathered(torch.cat(latents), len(rows)), videos, rows, condition, n)


def _shoot(
    shooter: Policy | VideoModel,
    config: RolloutConfig,
    shape: Sequence[int],
    negative: Condition | None,
    condition: Condition,
    draws: Sequence[torch.Generator],
    source: Latent | None = None,
    strength: float = 1.0,
    to: float = 0.0,
) -> list[Latent]:
    """This process's share of the takes of a condition, a batch at a time; half of one where memory runs out."""
    model = shooter.model if isinstance(shooter, Policy) else shooter
    noise = torch.stack([torch.randn(tuple(shape), generator=draw) for draw in draws])
    left, latents = share(len(draws)), []
    while left:
        part = left[: min(config.batch, model.room)]
        told = {name: value[part] for name, value in condition.items()}
        over, drawn = None if source is None else source[part], [draws[row] for row in part]
        settings = replace(config, strength=strength)
        try:
            latents.append(denoise(shooter, noise[part].to(model.device), told, settings, negative, drawn, over, to))
            left = left[len(part) :]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(part) == 1 or not by_itself():
                raise
            forget(error)
            model.room = len(part) // 2
            log.warning("memory has run out with %d takes at once: from now on %d", len(part), model.room)
    return latents


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
    to: float = 0.0,
) -> Latent:
    """From noise, or from a noised `source`, to latents; guided away from `negative`.

    Args:
        draws: random numbers of each row, for samplers that add noise on the way.
        to: the share of the steps that is left to others: the latents are then those foreseen at the last one taken.
    """
    model = shooter.model if isinstance(shooter, Policy) else shooter
    steps = config.steps or model.default_steps
    sampler = model.sampler(steps, noise.shape)
    x, first = noise * getattr(sampler, "init_noise_sigma", 1.0), 0  # flow samplers have none
    if source is not None:
        first = steps - max(1, int(steps * config.strength))
        x = noised(model, sampler, source, noise, sampler.timesteps[first])
    step, last = stepper(sampler, draws), steps - 1 - int(steps * to)
    asked, course = config.asks(steps) | {first, last}, Course(model.schedule)
    predict = shooter.predict if isinstance(shooter, Policy) else partial(model.predict, model.denoiser)
    with step_cache(model.denoisers.values(), config.cache, predict) as ask:
        for i, timestep in enumerate(sampler.timesteps[first : last + 1], first):
            t = model.schedule.time(timestep).expand(len(x))
            x_t = sampler.scale_model_input(x, timestep) if hasattr(sampler, "scale_model_input") else x
            if i in asked:
                away = negative if config.guided[0] <= t[0] <= config.guided[1] else None
                told = Told(condition, away, config.scale(model), together=2 * len(x) <= config.batch)
                prediction = guided(ask, x_t, t, told)
                course.add(prediction, x_t, t)
            else:
                prediction = course(x_t, t)
            if to and i == last:
                return model.schedule.split(prediction, x_t, t)[0]
            x = step(prediction, timestep, x)
    return model.with_known(x, condition)


def keyed_generator(*key: int) -> torch.Generator:
    """Random numbers that depend on the key alone: not on rank, batch or draws before."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(state)


def keyed_noise(shape: tuple[int, ...], *key: int) -> Tensor:
    """Standard normal noise that depends on the key alone."""
    return torch.randn(shape, generator=keyed_generator(*key))
