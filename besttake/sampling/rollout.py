"""Sampling of candidate videos: `generate`, which every algorithm, evaluation and command calls.

The sampler is the scheduler of the model's pipeline, so that rollouts are on-policy. Noise is keyed on (seed, step,
prompt, candidate), so that the candidates do not depend on the number of processes.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from besttake.data.video import read_video
from besttake.models import Size, VideoModel
from besttake.models.attention import attention
from besttake.models.compiled import compile_blocks
from besttake.models.float8 import float8_layers
from besttake.models.policy import Policy, UntrainedPolicy
from besttake.runtime.configuration import require
from besttake.runtime.distributed import all_gather_rows, is_single_process, shard_rows
from besttake.runtime.memory import free_memory, out_of_memory
from besttake.runtime.renamed import new_value
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.denoise import (
    Guidance,
    SchedulerStep,
    X0Extrapolation,
    add_noise,
    evaluation_steps,
    predict_with_guidance,
)
from besttake.sampling.step_cache import CacheConfig, step_cache
from besttake.types import Condition, Latent, Prompt, Video

log = logging.getLogger(__name__)


INHERITED = ("steps", "guidance", "negative_prompt", "frames", "height", "width", "batch", "compile", "strength")
"""Settings that validation and evaluation inherit from a run's rollout, unless they set them."""


@dataclass(frozen=True)
class RolloutOverrides:
    """Sampling settings that override a run's `rollout`.

    Approximations that make rollouts cheaper but change the videos (`cache`, `guidance_interval`, `evaluations`,
    `attention`, `fp8`) are not inherited: they are off unless set here.
    """

    steps: int | None = None
    """Sampling steps; by default as in the run's `rollout`."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 = no guidance, half the cost."""
    frames: int | None = None
    """Frames of a video."""
    height: int | None = None
    """Height of a video in pixels."""
    width: int | None = None
    """Width of a video in pixels."""
    batch: int | None = None
    """Batch size of sampling. With guidance, both predictions are one pass if twice the rows fit into it."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Step cache, which saves network evaluations."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance interval: times with guidance, 1 = noise (Kynkaanniemi et al. 2024). Other steps cost half."""
    evaluations: int | None = None
    """Network evaluations per sample; by default one per step. At the other steps x_0 is extrapolated."""
    compile: Literal["auto", "always", "never"] | None = None
    """Compile the network's blocks, for sampling and training; auto: on a GPU, if a training run is long enough."""
    strength: float | None = None
    """Noise strength for video-to-video prompts, in (0, 1]: the fraction of the steps that are sampled."""
    negative_prompt: str | None = None
    """Negative prompt for guidance; by default the model's own (usually the empty prompt)."""
    attention: str | None = None
    """Attention backend of sampling, perhaps an approximate one (sage); by default as in training."""
    fp8: bool = False
    """Multiply in float8 in the network's linear layers, on cards that can; changes the videos a little."""

    def __post_init__(self):
        self.over(RolloutConfig())

    def over(self, rollout: RolloutConfig) -> RolloutConfig:
        """A run's rollout settings, overridden by these; ValueError if one is invalid."""
        named = vars(self)
        return RolloutConfig(**{**named, **{name: getattr(rollout, name) for name in INHERITED if named[name] is None}})


@dataclass(frozen=True)
class RolloutConfig(RolloutOverrides):
    """Sampling settings."""

    steps: int | None = None
    """Sampling steps; by default the model's own, as for the other settings."""
    batch: int = 16
    """Batch size of sampling. With guidance, both predictions are one pass if twice the rows fit into it."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the network's blocks, for sampling and training; auto: on a GPU, if a training run is long enough."""
    strength: float = 0.8
    """Noise strength for video-to-video prompts, in (0, 1]: the fraction of the steps that are sampled."""

    def __post_init__(self):
        object.__setattr__(self, "compile", new_value("rollout.compile", self.compile))
        require(self.compile in ("auto", "always", "never"), "compile", self.compile, "auto, always or never")
        require(self.batch >= 1, "batch", self.batch, "1 or more")
        for name in ("steps", "frames", "height", "width"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} is {size}; expected 1 or more, or leave it out for the model's own")
        low, high = self.guidance_interval
        two_times = "two times in [0, 1], the lower one first"
        require(0 <= low <= high <= 1, "guidance_interval", self.guidance_interval, two_times)
        enough = self.evaluations is None or self.evaluations >= 2
        require(enough, "evaluations", self.evaluations, "2 or more, or leave it out for all steps")
        require(0 < self.strength <= 1, "strength", self.strength, "a fraction of the steps, in (0, 1]")

    def size(self, model: VideoModel) -> Size:
        """Frames, height and width; the model's own unless set."""
        named = (self.frames, self.height, self.width)
        frames, height, width = (a or b for a, b in zip(named, model.default_size(), strict=True))
        return frames, height, width

    def condition(
        self, model: VideoModel, prompts: Sequence[str], generator: torch.Generator | None = None
    ) -> Condition:
        """The denoiser's condition for prompts: for sampling or, with a `generator`, for training."""
        condition = model.encode_prompts(prompts, self.size(model), generator)
        if model.embeds_guidance:
            condition["guidance"] = torch.full((len(prompts),), self.scale(model), device=model.device)
        return condition

    def scale(self, model: VideoModel) -> float:
        """The guidance scale; the model's own unless set."""
        return model.default_guidance if self.guidance is None else self.guidance


@dataclass(frozen=True)
class Rollout:
    """`n` candidates of each of `p` prompts; rows are grouped by prompt: p0 candidate 0, p0 candidate 1, ...

    With several processes, `videos` has only the rows of this process's shard; everything else has all rows.
    """

    latents: Latent
    videos: Video
    prompts: list[str]
    condition: Condition
    n: int


@dataclass(frozen=True)
class Rows:
    """Inputs of sampling, one row per candidate.

    Attributes:
        shape: of a row's latents.
        negative: negative condition of all rows; None = no guidance.
        generators: a generator per row; the initial noise is drawn first.
        source: latents of source videos, for video-to-video; None = start from noise.
    """

    prompts: list[str]
    shape: tuple[int, ...]
    condition: Condition
    negative: Condition | None
    generators: list[torch.Generator]
    source: Latent | None


@torch.no_grad()
def generate(
    policy: Policy | VideoModel,
    prompts: list[str],
    config: RolloutConfig,
    *,
    n: int = 1,
    seed: tuple[int, ...] = (0,),
    decode: bool = True,
) -> Rollout:
    """Sample `n` candidates of every prompt; each process samples its shard.

    Args:
        policy: a policy, or a model without training.
        seed: key of the noise, together with the prompt and the number of the candidate.
        decode: whether to decode the latents; otherwise `videos` is empty.

    Raises:
        ValueError: a prompt is empty or too long, or the model cannot sample this size.
    """
    sampler = policy if isinstance(policy, Policy) else UntrainedPolicy(policy)
    rows = plan_rows(sampler.model, prompts, config, n, seed)
    latents = sample_rows(sampler, rows, config, shard_rows(len(rows.prompts)))
    videos = decode_latents(sampler.model, latents, config) if decode else torch.empty(0)
    return Rollout(all_gather_rows(torch.cat(latents), len(rows.prompts)), videos, rows.prompts, rows.condition, n)


def plan_rows(model: VideoModel, prompts: list[str], config: RolloutConfig, n: int, seed: tuple[int, ...]) -> Rows:
    """The rows of `n` candidates of every prompt, with their conditions and random numbers."""
    shape = tuple(model.latent_shape(*config.size(model)))
    condition = {name: value.repeat_interleave(n, 0) for name, value in config.condition(model, prompts).items()}
    do_classifier_free_guidance = config.scale(model) != 1 and not model.embeds_guidance
    if config.negative_prompt and model.embeds_guidance:
        raise ValueError(
            f"rollout.negative_prompt is set, but {model.source} is guidance-distilled and has no negative prompt; "
            "leave it out"
        )
    negative = model.encode_negative(1, config.negative_prompt) if do_classifier_free_guidance else None
    source = encode_sources(model, prompts, config)
    generators = [keyed_generator(*seed, zlib.crc32(prompt.encode()), k) for prompt in prompts for k in range(n)]
    rows = [prompt for prompt in prompts for _ in range(n)]
    return Rows(
        rows, shape, condition, negative, generators, None if source is None else source.repeat_interleave(n, 0)
    )


def sample_rows(
    policy: Policy | UntrainedPolicy, rows: Rows, config: RolloutConfig, mine: Sequence[int]
) -> list[Latent]:
    """Latents of some of the rows, batch by batch. If memory runs out, the batch size is halved.

    There are no collectives here, unless weights are sharded or tokens are split over processes.
    """
    model = policy.model
    model.parts.to_device()
    for denoiser in model.denoisers.values() if config.compile == "always" else ():
        compile_blocks(denoiser)
    noise = {row: torch.randn(rows.shape, generator=rows.generators[row]) for row in dict.fromkeys(mine)}
    left, sampled = list(mine), []
    denoisers = model.denoisers.values()
    with policy.merged(), attention(denoisers, config.attention), float8_layers(denoisers, config.fp8):
        while left:
            batch = left[: min(config.batch, model.max_batch)]
            try:
                sampled.append(_sample(policy, rows, config, batch, torch.stack([noise[row] for row in batch])))
                left = left[len(batch) :]
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(batch) == 1 or not is_single_process():
                    raise
                free_memory(error)
                model.max_batch = len(batch) // 2
                log.warning("out of memory with a sampling batch of %d: reduced to %d", len(batch), model.max_batch)
    return sampled


def _sample(
    policy: Policy | UntrainedPolicy, rows: Rows, config: RolloutConfig, batch: Sequence[int], noise: Tensor
) -> Latent:
    """Sample the latents of one batch of rows, from noise or from noised source latents."""
    model, steps = policy.model, config.steps or policy.model.default_steps
    scheduler, noise = model.make_scheduler(steps, noise.shape), noise.to(model.device)
    condition = {name: value[batch] for name, value in rows.condition.items()}
    x, first = noise * getattr(scheduler, "init_noise_sigma", 1.0), 0  # flow schedulers have none
    if rows.source is not None:
        first = steps - max(1, int(steps * config.strength))
        x = add_noise(model, scheduler, rows.source[batch], noise, scheduler.timesteps[first])
    evaluated = evaluation_steps(config.evaluations or steps, steps) | {first, steps - 1}
    step, extrapolate = (
        SchedulerStep(scheduler, [rows.generators[row] for row in batch]),
        X0Extrapolation(model.schedule),
    )
    low, high = config.guidance_interval
    with step_cache(model.denoisers.values(), config.cache, policy.predict) as predict:
        for i in range(first, steps):
            timestep = scheduler.timesteps[i]
            t = model.schedule.time(timestep).expand(len(x))
            x_t = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
            if i in evaluated:
                negative = rows.negative if low <= t[0] <= high else None
                guidance = Guidance(condition, negative, config.scale(model), one_pass=2 * len(x_t) <= config.batch)
                prediction = predict_with_guidance(predict, x_t, t, guidance)
                extrapolate.add(prediction, x_t, t)
            else:
                prediction = extrapolate(x_t, t)
            x = step(prediction, timestep, x)
    return model.with_known_frames(x, condition)


def decode_latents(model: VideoModel, latents: Sequence[Latent], config: RolloutConfig) -> Video:
    """Videos in [-1, 1] of batches of latents."""
    frames = config.size(model)[0]
    with model.using("vae"):
        return torch.cat([model.decode(part, frames=frames).float().clamp(-1, 1) for part in latents])


def encode_sources(model: VideoModel, prompts: Sequence[str], config: RolloutConfig) -> Latent | None:
    """Latents of the prompts' source videos; None if they have none."""
    sources = [prompt.source for prompt in prompts if isinstance(prompt, Prompt) and prompt.source]
    if not sources:
        return None
    if len(sources) < len(prompts):
        raise ValueError(
            f"{len(sources)} of {len(prompts)} prompts have a source video; give one to all of them, or to none"
        )
    frames, height, width = config.size(model)
    with model.using("vae"):
        videos = (read_video(path, fps=model.fps, frames=frames, size=(height, width)) for path in sources)
        return torch.cat([model.encode(video[None].to(model.device)).float() for video in videos])
