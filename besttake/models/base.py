"""What the library asks of a video diffusion model. One file per family beside this one implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from besttake.schedules import Schedule
from besttake.types import Condition, Latent, Time, Video


class VideoModel(ABC):
    """A video diffusion model: its noise process, its denoiser, and the way from and to text and pixels.

    Subclasses wrap a diffusers pipeline, whose numerics they reproduce: `generate` on this interface gives the
    pipeline's own latents from the same noise.

    Attributes:
        pipelines: class names of the diffusers pipelines this file serves (how a folder finds its file).
        lora_targets: the modules LoRA adapts, by name.
        frame_rate: frames a second the family shoots at.
    """

    pipelines: ClassVar[tuple[str, ...]]
    lora_targets: ClassVar[tuple[str, ...]]
    frame_rate: float
    schedule: Schedule

    def __init__(self, pipeline: Any, source: str):
        self.pipeline = pipeline
        self.source = source
        for component in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
            component.requires_grad_(False).eval()
        pipeline.set_progress_bar_config(disable=True)

    @property
    def denoiser(self) -> Any:
        return self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        return self.pipeline.transformer.device

    @property
    def fps(self) -> float:
        """Frames a second the model shoots at: the family's, unless the autoencoder's config has a `sample_fps`."""
        return float(self.pipeline.vae.config.get("sample_fps") or self.frame_rate)

    @abstractmethod
    def default_size(self) -> tuple[int, int, int]:
        """Frames, height and width the model was made for."""

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`c f h w` of the latents of a clip; ValueError for a size the model cannot take."""

    @abstractmethod
    def longest_prompt(self) -> int:
        """Tokens the text encoder reads."""

    @abstractmethod
    def embed(self, prompts: list[str]) -> Condition:
        """Text embeddings, one row per prompt, cut at the longest prompt the encoder reads."""

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Condition:
        """Text embeddings, one row per prompt; ValueError for an empty prompt or one longer than the encoder reads."""
        self.check_prompts(prompts)
        return self.embed(prompts)

    def encode_negative(self, n: int) -> Condition:
        """What classifier-free guidance steers away from: the empty prompt, `n` times."""
        with torch.no_grad():
            return self.embed([""] * n)

    @abstractmethod
    def encode(self, video: Video) -> Latent:
        """Latents of videos: the mode of the posterior, scaled as the denoiser expects."""

    @abstractmethod
    def decode(self, latents: Latent) -> Video:
        """Videos in [-1, 1] of latents."""

    @abstractmethod
    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """What `denoiser` (the policy's or the reference's) predicts at `x_t`."""

    def sampler(self, steps: int) -> Any:
        """A fresh diffusers scheduler, the one users deploy with, set to `steps` steps."""
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def check_prompts(self, prompts: list[str]) -> None:
        """ValueError if a prompt is empty or has more tokens than the text encoder reads."""
        longest = self.longest_prompt()
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("a prompt is empty; every prompt needs at least one word")
            tokens = len(self.pipeline.tokenizer(prompt, truncation=False, verbose=False).input_ids)
            if tokens > longest:
                raise ValueError(
                    f"the prompt '{prompt[:60]}...' has {tokens} tokens; {self.source} reads {longest}: shorten it"
                )

    def check_size(self, frames: int, height: int, width: int, time: int, space: int, group: int = 1) -> None:
        """ValueError unless the model can take a clip of this size.

        Args:
            time: pixel frames to a latent frame, the first of which is one pixel frame alone.
            space: the sides are multiples of it.
            group: latent frames to a token.
        """
        first, period = time * (group - 1) + 1, time * group
        if frames < first or (frames - first) % period:
            nearest = first + max(0, round((frames - first) / period)) * period
            raise ValueError(
                f"{frames} frames do not fit {self.source}: it takes {first} + a multiple of {period}, say {nearest}"
            )
        for name, side in (("height", height), ("width", width)):
            if side < space or side % space:
                nearest = max(space, round(side / space) * space)
                raise ValueError(
                    f"{name} {side} does not fit {self.source}: it takes multiples of {space}, say {nearest}"
                )


def folded(frames: Tensor) -> Tensor:
    """`b f c h w` <-> `b c f h w`: swap the second and third axis."""
    return frames.transpose(1, 2)


def pipeline_class(source: str) -> str:
    """The pipeline class a folder or hub id was saved from, read from its `model_index.json`.

    Raises:
        ValueError: there is no such folder or hub id, or it is not a diffusers pipeline.
    """
    if not Path(source).exists() and (source.startswith((".", "/")) or source.count("/") != 1):
        raise ValueError(
            f"there is no model folder '{source}'; give a diffusers pipeline folder or a hub id 'owner/name'"
        )
    try:
        return DiffusionPipeline.load_config(source)["_class_name"]
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"'{source}' is not a diffusers pipeline (no readable model_index.json): {error}") from error
