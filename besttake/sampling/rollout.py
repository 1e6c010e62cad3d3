"""Sampling videos: the one loop that every algorithm, evaluation and command uses.

The sampler is the diffusers scheduler the model's users deploy with, so that rollouts are on-policy; noise is keyed
on (seed, step, prompt, candidate), so that one process and eight shoot the same takes.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Container, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from besttake.data.video import read_video
from besttake.models import Size, VideoModel
from besttake.models.compiled import compile_blocks
from besttake.models.policy import Policy
from besttake.runtime.configuration import require
from besttake.runtime.distributed import by_itself, even, gathered, share
from besttake.runtime.memory import forget, out_of_memory
from besttake.sampling.denoise import Course, Stepper, Told, guided, noised, spread_out
from besttake.sampling.step_cache import CacheConfig, step_cache
from besttake.sampling.windows import decode_some
from besttake.types import Condition, Latent, Prompt, Video

log = logging.getLogger(__name__)

T = TypeVar("T")


INHERITED = ("steps", "guidance", "frames", "height", "width", "batch", "compile", "strength")
"""What looks and evaluations take from a run's rollout: what its videos are like, and how much memory there is."""


@dataclass(frozen=True)
class RolloutOverrides:
    """How videos are sampled otherwise than the run's own: what is left out is as in its `rollout`.

    What makes a run's rollouts cheaper, at the price of other videos (`cache`, `guided`, `asked`, `shared`, `decoded`),
    is not taken over: there is none of it unless it is named here.
    """

    steps: int | None = None
    """Sampling steps; by default as many as in the run's `rollout`, as is all else that is left out."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 = none, at half the cost."""
    frames: int | None = None
    """Frames of a clip, whose height and width are in pixels."""
    height: int | None = None
    width: int | None = None
    batch: int | None = None
    """Videos denoised at once; with guidance, both halves of a prediction are one pass where twice as many fit."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    guided: tuple[float, float] = (0.0, 1.0)
    """Diffusion times (1 = noise) within which there is guidance; outside them a step costs half."""
    asked: int | None = None
    """Steps at which the network is asked, by default all; at the others its last two answers are extrapolated."""
    shared: float = 0.0
    """Share of the steps that a prompt's takes have in common, at the cost of one: they part there, each by a noise of
    its own, and are more alike."""
    compile: bool | None = None
    """Compile the network's blocks (torch.compile), in training too: minutes at the start, faster afterwards."""
    decoded: int | None = None
    """Frames of a take that are decoded, evenly from first to last, each from the latents around it: a preview for
    critics that look at few; by default all."""
    strength: float | None = None
    """Of prompts with a source video: the share of the steps that it is noised back by, and taken again."""

    def __post_init__(self):
        self.over(RolloutConfig())

    def over(self, rollout: RolloutConfig) -> RolloutConfig:
        """A run's rollout with these settings instead of its own; ValueError if one of them cannot be."""
        named = vars(self)
        return RolloutConfig(**{**named, **{name: getattr(rollout, name) for name in INHERITED if named[name] is None}})


@dataclass(frozen=True)
class RolloutConfig(RolloutOverrides):
    """How videos are sampled."""

    steps: int | None = None
    """Sampling steps; by default the model's own, as is all else that is left out."""
    batch: int = 16
    """Videos denoised at once; with guidance, both halves of a prediction are one pass where twice as many fit."""
    compile: bool = False
    """Compile the network's blocks (torch.compile), in training too: minutes at the start, faster afterwards."""
    strength: float = 0.8
    """Of prompts with a source video: the share of the steps that it is noised back by, and taken again."""

    def __post_init__(self):
        require(self.batch >= 1, "batch", self.batch, "1 or more")
        for name in ("steps", "frames", "height", "width", "decoded"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1, or left out for the model's own")
        if not 0 <= self.guided[0] <= self.guided[1] <= 1:
            raise ValueError(f"guided is {self.guided}; expected two times in [0, 1], the smaller one first")
        if self.asked is not None and self.asked < 2:
            raise ValueError(f"asked is {self.asked}; it must be at least 2, or left out for all steps")
        if not 0 <= self.shared < 1:
            raise ValueError(f"shared is {self.shared}; a share of the steps lies in [0, 1)")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; a share of the steps lies in (0, 1]")

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

    def rate(self, model: VideoModel) -> float:
        """Frames a second of the videos that come of it."""
        frames = self.size(model)[0]
        return model.fps * min(self.decoded or frames, frames) / frames

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


@dataclass(frozen=True)
class Preview:
    """Takes that are shown when they are half done, and of which only some are finished.

    Attributes:
        at: share of the steps after which the x_0 that is foreseen then is decoded.
        choose: given previews of this process's rows and the prompts of all, which takes of each prompt go on.
    """

    at: float
    choose: Callable[[Video, list[str]], Int[Tensor, "p k"]]


@torch.no_grad()
def generate(
    shooter: Policy | VideoModel,
    prompts: list[str],
    config: RolloutConfig,
    *,
    n: int = 1,
    seed: tuple[int, ...] = (0,),
    decode: bool = True,
    preview: Preview | None = None,
) -> Rollout:
    """Shoot `n` takes of every prompt; of several processes each shoots its share.

    Args:
        shooter: a policy, or a model without one.
        seed: with the prompt and the number of the take, the key of its noise.
        decode: whether to turn latents into videos; otherwise `videos` is empty.
        preview: after which only some of the takes go on; by default all do.

    Raises:
        ValueError: a prompt is empty or too long, or the model cannot take the size asked for.
    """
    if preview and not even(len(prompts)):
        raise ValueError(f"{len(prompts)} prompts with previews cannot be dealt to these processes: take a multiple")
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
            draws = [keyed_generator(*seed, zlib.crc32(p.encode()), n) for p in prompts]
            begun = shoot(unique, draws, lambda shot: shot.until(config.shared))
            source = gathered(torch.cat(begun), len(prompts))
        draws = [keyed_generator(*seed, zlib.crc32(p.encode()), k) for p in prompts for k in range(n)]
        over = None if source is None else source.repeat_interleave(n, 0)
        if preview is None:
            latents = shoot(condition, draws, Shot.finish, over, strength)
        else:
            half_done = shoot(condition, draws, lambda shot: (shot, shot.until(preview.at)), over, strength)
            shots, foreseen = zip(*half_done, strict=True)
            places = (
                preview.choose(_decoded(model, foreseen, config), rows).cpu() + n * torch.arange(len(prompts))[:, None]
            )
            model.wake()
            latents = _finished(shots, share(len(rows)), set(places.flatten().tolist()))
            kept, n = places.sort(1).values.flatten(), places.shape[1]
            rows = [rows[row] for row in kept]
            condition = {name: value[kept] for name, value in condition.items()}
    videos = _decoded(model, latents, config) if decode else torch.empty(0)
    return Rollout(gathered(torch.cat(latents), len(rows)), videos, rows, condition, n)


def _shoot(
    shooter: Policy | VideoModel,
    config: RolloutConfig,
    shape: Sequence[int],
    negative: Condition | None,
    condition: Condition,
    draws: Sequence[torch.Generator],
    go: Callable[[Shot], T],
    source: Latent | None = None,
    strength: float = 1.0,
) -> list[T]:
    """How far each batch of this process's share of takes has come; batches are half as large where memory runs out."""
    model = shooter.model if isinstance(shooter, Policy) else shooter
    noise = torch.stack([torch.randn(tuple(shape), generator=draw) for draw in draws])
    left, found = share(len(draws)), []
    while left:
        part = left[: min(config.batch, model.room)]
        told = {name: value[part] for name, value in condition.items()}
        over, drawn = None if source is None else source[part], [draws[row] for row in part]
        try:
            found.append(go(Shot(shooter, config, negative, noise[part].to(model.device), told, drawn, over, strength)))
            left = left[len(part) :]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(part) == 1 or not by_itself():
                raise
            forget(error)
            model.room = len(part) // 2
            log.warning("memory has run out with %d takes at once: from now on %d", len(part), model.room)
    return found


def _finished(shots: Sequence[Shot], rows: Sequence[int], wanted: Container[int]) -> list[Latent]:
    """The latents of those of half-done takes that are wanted; `rows` are all those of the shots, in order."""
    latents, row = [], iter(rows)
    for shot in shots:
        shot.keep([place for place in range(len(shot.x)) if next(row) in wanted])
        if len(shot.x):
            latents.append(shot.finish())
    return latents


def _decoded(model: VideoModel, latents: Sequence[Latent], config: RolloutConfig) -> Video:
    frames = config.size(model)[0]
    decode = partial(model.decode, frames=frames)
    if config.decoded and config.decoded < frames:
        decode = partial(decode_some, model, frames=frames, some=config.decoded)
    with model.using("vae"):
        return torch.cat([decode(part).float().clamp(-1, 1) for part in latents])


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


class Shot:
    """A batch of takes on its way: from noise, or from a noised `source`, to latents."""

    def __init__(
        self,
        shooter: Policy | VideoModel,
        config: RolloutConfig,
        negative: Condition | None,
        noise: Latent,
        condition: Condition,
        draws: Sequence[torch.Generator],
        source: Latent | None = None,
        strength: float = 1.0,
    ):
        """
        Args:
            negative: what it is guided away from.
            draws: random numbers of each row, for samplers that add noise on the way.
            strength: the share of the steps that a source is noised back by.
        """
        self.model = model = shooter.model if isinstance(shooter, Policy) else shooter
        self.config, self.negative, self.condition = config, negative, condition
        self.steps = config.steps or model.default_steps
        self.sampler = sampler = model.sampler(self.steps, noise.shape)
        self.x, self.at = noise * getattr(sampler, "init_noise_sigma", 1.0), 0  # flow samplers have none
        if source is not None:
            self.at = self.steps - max(1, int(self.steps * strength))
            self.x = noised(model, sampler, source, noise, sampler.timesteps[self.at])
        self.asked = config.asks(self.steps) | {self.at, self.steps - 1}
        self.step, self.course = Stepper(sampler, draws), Course(model.schedule)
        self.predict = shooter.predict if isinstance(shooter, Policy) else partial(model.predict, model.denoiser)

    def finish(self) -> Latent:
        """Take the steps that are left."""
        self._go(self.steps - 1)
        return self.model.with_known(self.x, self.condition)

    def until(self, share: float) -> Latent:
        """Take a share of all steps, and foresee x_0 at the last of them."""
        last = max(self.at, self.steps - 1 - int(self.steps * (1 - share)))
        self.asked.add(last)
        return self._go(last)

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the takes."""
        self.x, self.condition = self.x[rows], {name: value[rows] for name, value in self.condition.items()}
        self.step.keep(rows)
        self.course.keep(rows)

    @torch.no_grad()
    def _go(self, last: int) -> Latent:
        """Steps up to the `last` one; the x_0 that is foreseen there."""
        model, config, sampler = self.model, self.config, self.sampler
        foreseen = self.x
        with step_cache(model.denoisers.values(), config.cache, self.predict) as ask:
            for i in range(self.at, last + 1):
                timestep = sampler.timesteps[i]
                t = model.schedule.time(timestep).expand(len(self.x))
                scaled = hasattr(sampler, "scale_model_input")
                x_t = sampler.scale_model_input(self.x, timestep) if scaled else self.x
                if i in self.asked:
                    away = self.negative if config.guided[0] <= t[0] <= config.guided[1] else None
                    together = 2 * len(x_t) <= config.batch
                    prediction = guided(ask, x_t, t, Told(self.condition, away, config.scale(model), together))
                    foreseen = self.course.add(prediction, x_t, t)
                else:
                    prediction = self.course(x_t, t)
                self.x = self.step(prediction, timestep, self.x)
        self.at = last + 1
        return foreseen


def keyed_generator(*key: int) -> torch.Generator:
    """Random numbers that depend on the key alone: not on rank, batch or draws before."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(state)


def keyed_noise(shape: tuple[int, ...], *key: int) -> Tensor:
    """Standard normal noise that depends on the key alone."""
    return torch.randn(shape, generator=keyed_generator(*key))
