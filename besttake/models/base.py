"""The interface of a video diffusion model. One file per family in `families/` implements it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from besttake.models.loading import pipeline_class, pipeline_folder, read_pipeline
from besttake.models.parts import PipelineParts
from besttake.models.prompts import PromptEncoder
from besttake.models.quantization import Quantization
from besttake.models.schedules import Schedule
from besttake.types import Condition, Latent, Time, Video

Size = tuple[int, int, int]
"""Frames, height and width of a clip, in pixels."""


class VideoModel(ABC):
    """A video diffusion model: noise process, denoiser, and conversion of text and pixels.

    Subclasses wrap a diffusers pipeline and reproduce its numerics: `generate` on this interface gives the same latents
    as the pipeline from the same noise.

    Attributes:
        pipelines: class names of the diffusers pipelines that this class supports.
        lora_targets: names of the modules that LoRA adapts.
        text_parts: the pipeline's parts that `embed` uses.
        text_outputs: condition names for the outputs of the pipeline's `encode_prompt`, in order; further outputs are
            ignored.
        precise: parts that are always in float32, whatever the dtype of the others.
        frame_rate: frames per second of the family's clips.
        steps, guidance: sampling steps and guidance scale that its authors recommend.
        embeds_guidance: the guidance scale is one of the denoiser's inputs (a guidance-distilled model).
        needs_first_frame, accepts_first_frame: whether a prompt must, and may, have a first frame.
        parts: loads and frees the pipeline's parts.
        prompts: checks prompts and caches their text embeddings.
        max_batch: largest batch for sampling; lowered when memory runs out.
    """

    pipelines: ClassVar[tuple[str, ...]]
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    text_outputs: ClassVar[tuple[str, ...]] = ("text",)
    precise: ClassVar[tuple[str, ...]] = ()
    parts_class: ClassVar[type[PipelineParts]] = PipelineParts
    frame_rate: float
    steps: int = 50
    guidance: float = 6.0
    schedule: Schedule
    embeds_guidance: bool = False
    needs_first_frame: bool = False
    accepts_first_frame: bool = False

    def __init__(self, pipeline: Any, source: str):
        self.pipeline, self.source = pipeline, source
        self.device: torch.device = pipeline.transformer.device
        self.parts = self.parts_class(pipeline, source)
        self.prompts = PromptEncoder(self)
        self.max_batch = sys.maxsize
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def serves(cls, source: str) -> bool:
        """Whether the checkpoint in a folder or on the hub belongs to this family."""
        return pipeline_class(source) in cls.pipelines

    @classmethod
    def load(
        cls, source: str, dtype: torch.dtype, device: str, bits: Quantization = "none", offload: bool = False
    ) -> VideoModel:
        """Load the model in a folder or on the hub; ValueError if a part is missing or broken."""
        dtypes = {"": dtype} | dict.fromkeys(cls.precise, torch.float32)
        folder = pipeline_folder(source)
        model = cls(read_pipeline(folder, dtypes, device, bits, offload), source)
        model.parts.folder, model.parts.dtypes = folder, dtypes
        with model.using("vae"):  # first needed late in a run: check now that it loads
            return model

    @property
    def denoisers(self) -> dict[str, Any]:
        """The denoising networks, by their names in the pipeline."""
        return self.parts.denoisers

    @property
    def denoiser(self) -> Any:
        """The denoising network; a ModuleDict of both if there are two experts (Wan 2.2)."""
        parts = self.denoisers
        return nn.ModuleDict(parts) if len(parts) > 1 else next(iter(parts.values()))

    @property
    def fps(self) -> float:
        """Frames a second: the family's, unless the autoencoder's config has a `sample_fps`."""
        return float(self.pipeline.vae.config.get("sample_fps") or self.frame_rate)

    @property
    def default_steps(self) -> int:
        """Sampling steps: the family's, unless the autoencoder's config has `sample_steps`."""
        return int(self.pipeline.vae.config.get("sample_steps") or self.steps)

    @property
    def default_guidance(self) -> float:
        """Guidance scale: the family's, unless the autoencoder's config has `sample_guidance`."""
        return float(self.pipeline.vae.config.get("sample_guidance") or self.guidance)

    def using(self, *names: str) -> AbstractContextManager[None]:
        """Context in which these parts of the pipeline have their weights in memory."""
        return self.parts.using(*names)

    def identity(self, *names: str) -> str:
        """A key of parts of the pipeline: it changes with their weights, dtypes and settings."""
        return repr((type(self).__name__, *self.parts.identity(*names)))

    # Sizes -------------------------------------------------------------------------------------------------

    @abstractmethod
    def default_size(self) -> Size:
        """Frames, height and width the model was made for."""

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`c f h w` of the latents of a clip; ValueError for a size that does not fit the model."""

    def check_size(self, frames: int, height: int, width: int, time: int, space: int) -> None:
        """ValueError unless a clip of this size fits the model.

        Args:
            time: temporal factor: `frames` must be 1 + a multiple of it.
            space: spatial factor: height and width must be multiples of it.
        """
        if frames < 1 or (frames - 1) % time:
            nearest = 1 + max(0, round((frames - 1) / time)) * time
            raise ValueError(
                f"{frames} frames do not fit {self.source}, which needs 1 + a multiple of {time}, such as {nearest}"
            )
        for name, side in (("height", height), ("width", width)):
            if side < space or side % space:
                nearest = max(space, round(side / space) * space)
                raise ValueError(
                    f"{name} {side} does not fit {self.source}, which needs a multiple of {space}, such as {nearest}"
                )

    def tokens(self, frames: int, height: int, width: int) -> int | None:
        """Number of tokens of a clip, if the denoiser supports context parallelism; else None."""
        return None

    # Prompts --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def longest_prompt(self) -> int:
        """Maximum number of tokens of the text encoder."""

    def count_tokens(self, prompt: str) -> int:
        """Number of tokens of a prompt, without truncation."""
        return len(self.pipeline.tokenizer(prompt, truncation=False, verbose=False).input_ids)

    def embed(self, prompts: list[str]) -> Condition:
        """Text embeddings, one row per prompt, truncated to the longest prompt."""
        outputs = self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.longest_prompt(),
            device=self.device,
        )
        return dict(zip(self.text_outputs, outputs, strict=False))

    def first_frame_condition(
        self, first_frames: Float[Tensor, "b 3 h w"], frames: int, generator: torch.Generator | None
    ) -> Condition:
        """The condition of first frames in [-1, 1].

        Args:
            frames: number of frames of the clips.
            generator: given in training, where some models add noise to the first frame.
        """
        raise NotImplementedError

    def encode_prompts(
        self, prompts: Sequence[str], size: Size | None = None, generator: torch.Generator | None = None
    ) -> Condition:
        """The condition of prompts: their text and, for a `Prompt` with a first frame, that frame.

        Args:
            size: of the clips; by default the model's own.
            generator: given in training, where some models add noise to the first frame.

        Raises:
            ValueError: a prompt is empty or too long; a first frame is missing, unreadable or not accepted.
        """
        return self.prompts.encode(prompts, size, generator)

    negative_prompt: str = ""
    """The family's default negative prompt."""

    @property
    def default_negative_prompt(self) -> str:
        """Negative prompt: the family's, unless the autoencoder's config has a `sample_negative_prompt`."""
        return str(self.pipeline.vae.config.get("sample_negative_prompt") or self.negative_prompt)

    def encode_negative(self, n: int, prompt: str | None = None) -> Condition:
        """The negative condition of classifier-free guidance, `n` times.

        Args:
            prompt: by default the model's own negative prompt; "" = unconditional.

        Raises:
            ValueError: it has more tokens than the text encoder accepts.
        """
        self.check_negative(prompt)
        text = self.default_negative_prompt if prompt is None else prompt
        with torch.no_grad():
            return {name: value.repeat_interleave(n, 0) for name, value in self.prompts.text([text]).items()}

    def check_negative(self, prompt: str | None) -> None:
        """ValueError if a negative prompt has more tokens than the text encoder accepts."""
        if prompt and (tokens := self.count_tokens(prompt)) > self.longest_prompt():
            raise ValueError(
                f"the negative prompt has {tokens} tokens, but {self.source} accepts "
                f"{self.longest_prompt()}: shorten it"
            )

    def check_prompts(self, prompts: Sequence[str], skip_bad: bool | None = None) -> list[str]:
        """The prompts that fit the model.

        Raises:
            ValueError: naming, unless `skip_bad` (see `read_each`), every prompt that is empty, has more tokens than
                the text encoder accepts, or lacks its first frame.
        """
        return self.prompts.check_all(prompts, skip_bad)

    # Pixels and latents ---------------------------------------------------------------------------------------------

    @abstractmethod
    def latents_mean_and_scale(self) -> tuple[Tensor | float, Tensor | float]:
        """Mean and scale of the autoencoder's latents. The denoiser works on (latents - mean) / scale."""

    def encode(self, video: Video) -> Latent:
        """Latents of videos: the mode of the posterior, scaled as the denoiser expects."""
        with self.using("vae"):
            vae = self.pipeline.vae
            latents = vae.encode(swap_frames_and_channels(video).to(vae.device, vae.dtype)).latent_dist.mode()
            mean, scale = self.latents_mean_and_scale()
            return (latents - mean) / scale

    def decode(self, latents: Latent, frames: int | None = None) -> Video:
        """Videos, in about [-1, 1], of latents.

        Args:
            frames: of the clip, if latents may start with padding (CogVideoX 1.5).
        """
        with self.using("vae"):
            vae = self.pipeline.vae
            mean, scale = self.latents_mean_and_scale()
            return swap_frames_and_channels(self.decode_latents(latents.to(vae.device, vae.dtype) * scale + mean))

    def decode_latents(self, latents: Latent) -> Float[Tensor, "b c f h w"]:
        """The autoencoder's own decoder."""
        return self.pipeline.vae.decode(latents, return_dict=False)[0]

    def per_channel(self, values: Sequence[float] | Tensor) -> Tensor:
        """One number per latent channel, to multiply latents with."""
        vae = self.pipeline.vae
        return torch.as_tensor(values).view(1, -1, 1, 1, 1).to(vae.device, vae.dtype)

    # The network ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """The prediction of `denoiser` (the policy's or the reference's) at `x_t`."""

    def schedule_for(self, shape: Sequence[int]) -> Schedule:
        """The noise schedule for training on latents `... c f h w`; some models use more noise for larger clips."""
        return self.schedule

    def make_scheduler(self, steps: int, shape: Sequence[int]) -> Any:
        """A new instance of the pipeline's scheduler, set to `steps` steps for latents `... c f h w`."""
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(**self.set_timesteps_kwargs(steps, shape), device=self.device)
        return scheduler

    def set_timesteps_kwargs(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        """Arguments that the family's pipeline passes to its scheduler's `set_timesteps`."""
        return {"num_inference_steps": steps}

    def with_known_frames(self, latents: Latent, condition: Condition) -> Latent:
        """Latents with known ones (of a first frame) put in place; unchanged for most models."""
        return latents

    # LoRA -----------------------------------------------------------------------------------------------

    def save_lora(self, folder: Path, layers: Mapping[str, dict[str, Tensor]], configs: Mapping[str, dict]) -> None:
        """Write LoRA weights of each denoiser for `pipe.load_lora_weights`."""
        named = {f"{name}_lora_layers": weights for name, weights in layers.items()}
        named |= {f"{name}_lora_adapter_metadata": config for name, config in configs.items()}
        self.pipeline.save_lora_weights(folder, **named)

    def load_lora(self, folder: Path) -> None:
        """Read what `save_lora` wrote."""
        self.pipeline.load_lora_weights(str(folder))


def swap_frames_and_channels(frames: Tensor) -> Tensor:
    """`b f c h w` <-> `b c f h w`: swap the frame and channel axes."""
    return frames.transpose(1, 2)
