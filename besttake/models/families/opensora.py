"""Open-Sora 1.2 (Zheng et al. 2024, arXiv 2412.20404), text-to-video: rectified flow towards the data.

A checkpoint is the denoiser's folder or hub id, `hpcai-tech/OpenSora-STDiT-v3`. It is the model of OnlineVPO's
experiments: 30 steps at guidance 7. Its own inference script adds "aesthetic score: 6.5." to prompts; here nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import T5EncoderModel

from besttake.models.base import Size, VideoModel, swap_frames_and_channels
from besttake.models.loading import FAULTS, empty_part, read_denoiser, read_part
from besttake.models.networks.checkpoints import check_whole
from besttake.models.networks.opensora import FPS, FPS_OF_STILLS, HUB, OpenSoraPipeline, noise_ratio, part_of
from besttake.models.networks.opensora_captions import clean
from besttake.models.networks.opensora_vae import VideoAutoencoderPipeline
from besttake.models.networks.stdit3 import STDiT3
from besttake.models.parts import PipelineParts
from besttake.models.quantization import Quantization
from besttake.models.schedules import RectifiedFlow
from besttake.types import Condition, Latent, Time, Video

SHORTEST = 17
"""Frames of the shortest clip, and of a chunk of the autoencoder; 1 frame is a still image."""


class OpenSoraParts(PipelineParts):
    def read(self, name: str, cls: Any, dtype: torch.dtype) -> nn.Module:
        place, device = part_of(self.source, name), str(self.device)
        try:
            if name == "text_encoder":
                return read_part(place, "", cls, dtype, device)
            return self.configure_vae(cls.from_pretrained(place, dtype, device).requires_grad_(False))
        except FAULTS as error:
            raise ValueError(f"the {name} of '{self.source}' does not load: {error}") from error

    @property
    def names(self) -> list[str]:
        return sorted(HUB)  # the scheduler has no settings

    def component_folder(self, name: str) -> Path:
        place = part_of(self.source, name)
        return Path(place) if Path(place).is_dir() else Path(snapshot_download(place))


class OpenSora(VideoModel):
    pipelines = (STDiT3.__name__,)
    parts_class = OpenSoraParts
    guidance = 7.0
    steps = 30
    lora_targets = ("qkv", "attn.proj", "q_linear", "kv_linear", "cross_attn.proj")
    frame_rate = FPS

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.schedule = LogitNormalFlow()

    @classmethod
    def load(
        cls, source: str, dtype: torch.dtype, device: str, bits: Quantization = "none", offload: bool = False
    ) -> VideoModel:
        try:
            places = {name: part_of(source, name) for name in ("text_encoder", "vae")}
            for place in places.values():
                check_whole(Path(place))
            pipeline = OpenSoraPipeline.from_pretrained(
                source,
                dtype,
                device,
                transformer=read_denoiser(partial(STDiT3.from_pretrained, source, dtype), device, bits, offload),
                text_encoder=empty_part(places["text_encoder"], "", T5EncoderModel),
                vae=VideoAutoencoderPipeline.empty(places["vae"]),
            )
        except FAULTS as error:
            raise ValueError(f"the model in '{source}' does not load: {error}") from error
        model = cls(pipeline, source)
        with model.using("vae"):  # check now that it loads
            return model

    def default_size(self) -> Size:
        frames, height, width = self.denoiser.config.input_size  # of latents; None in the public config
        if not (frames and height and width):
            return 51, 240, 424
        vae = self.pipeline.vae
        return vae.most_frames(frames), height * vae.space, width * vae.space

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        if 1 < frames < SHORTEST:
            nearest = 1 if frames < (1 + SHORTEST) / 2 else SHORTEST
            raise ValueError(
                f"{frames} frames do not fit {self.source}, which needs 1, or at least {SHORTEST}, such as {nearest}"
            )
        vae = self.pipeline.vae
        self.check_size(frames, height, width, 1, vae.space)
        return self.denoiser.config.in_channels, vae.latent_frames(frames), height // vae.space, width // vae.space

    def longest_prompt(self) -> int:
        return self.denoiser.config.model_max_length

    def count_tokens(self, prompt: str) -> int:
        cleaned = clean(prompt)
        if not cleaned:
            raise ValueError(
                f"the prompt '{prompt[:60]}' is empty after Open-Sora's cleaning, which removes links, file names, "
                "long numbers and Chinese characters; write it in other words"
            )
        return super().count_tokens(cleaned)

    def embed(self, prompts: list[str]) -> Condition:
        text, mask = self.pipeline.encode_prompt(prompts)
        return {"text": text, "mask": mask}

    def encode_negative(self, n: int, prompt: str | None = None) -> Condition:
        """The learned unconditional embedding, used with the caption's mask; or a negative prompt's embedding."""
        if prompt:
            return super().encode_negative(n, prompt)
        return {"text": self.pipeline.transformer.y_embedder.y_embedding.to(self.device).expand(n, -1, -1)}

    def latents_mean_and_scale(self) -> tuple[Tensor, Tensor]:
        return self.pipeline.vae.shift, self.pipeline.vae.scale

    def decode(self, latents: Latent, frames: int | None = None) -> Video:
        """Videos of `frames` frames, by default the most that the latents hold: the last latent frame is 1 to 4."""
        with self.using("vae"):
            vae, (shift, scale) = self.pipeline.vae, self.latents_mean_and_scale()
            return swap_frames_and_channels(
                vae.decode(latents.to(vae.device, vae.dtype) * scale + shift, frames, return_dict=False)[0]
            )

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """The condition may have each row's `fps`, `height` and `width`; by default they follow from the latents."""
        b, channels, frames, height, width = x_t.shape
        space = self.pipeline.vae.space
        size = {"fps": FPS if frames > 1 else FPS_OF_STILLS, "height": height * space, "width": width * space}
        sizes = {name: torch.full((b,), float(value), device=x_t.device) for name, value in size.items()}
        sizes |= {name: value for name, value in condition.items() if name in sizes}
        output = denoiser(x_t, self.schedule.timestep(t), condition["text"][:, None], condition["mask"], **sizes)
        return output[:, :channels]

    def schedule_for(self, shape: Sequence[int]) -> LogitNormalFlow:
        return LogitNormalFlow(self._noise_ratio(shape))

    def set_timesteps_kwargs(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        return {"num_inference_steps": steps, "ratio": self._noise_ratio(shape)}

    def _noise_ratio(self, shape: Sequence[int]) -> float:
        """The noise ratio of latents `... c f h w`."""
        vae = self.pipeline.vae
        frames, height, width = shape[-3:]
        return noise_ratio(vae.most_frames(frames), height * vae.space, width * vae.space)


class LogitNormalFlow(RectifiedFlow):
    """Rectified flow towards the data with shifted logit-normal training times (Esser et al. 2024, section 3.1)."""

    def __init__(self, shift: float = 1.0):
        super().__init__(shift, to_data=True)

    def times(self, u: Tensor, low: float = 0.0, high: float = 1.0) -> Time:
        """Quantiles `u` of the shifted sigmoid of a normal variable, restricted to [low, high]."""
        if not 0 <= low < high <= 1:
            raise ValueError(f"no training time in [{low}, {high}]: expected a range within [0, 1]")
        bounds = torch.tensor([self._unshift(low), self._unshift(high)], dtype=torch.float64)
        lower, upper = torch.special.ndtr(bounds.logit())
        z = torch.special.ndtri(lower + (upper - lower) * u.cpu().double())
        return super().times(z.sigmoid().to(u))
