"""Wan 2.1 (arXiv 2503.20314), text-to-video: rectified flow, a text encoder whose padding is set to zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from besttake.models.base import VideoModel, folded
from besttake.schedules import RectifiedFlow
from besttake.types import Condition, Latent, Time, Video


class Wan(VideoModel):
    pipelines = ("WanPipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    frame_rate = 16.0

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        config = pipeline.scheduler.config
        self.schedule = RectifiedFlow(config.get("flow_shift") or config.get("shift") or 1.0)

    def default_size(self) -> tuple[int, int, int]:
        config = self.pipeline.vae.config
        return config.get("sample_frames", 81), config.get("sample_height", 480), config.get("sample_width", 832)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        # The autoencoder reads the first frame, then four at a time, and drops what is left over.
        time, space = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        self.check_size(frames, height, width, max(time, 4), space * self.denoiser.config.patch_size[1])
        return self.denoiser.config.in_channels, (frames - 1) // time + 1, height // space, width // space

    def longest_prompt(self) -> int:
        return min(512, self.pipeline.tokenizer.model_max_length)

    def embed(self, prompts: list[str]) -> Condition:
        embeddings, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.longest_prompt()
        )
        return {"text": embeddings}

    def encode(self, video: Video) -> Latent:
        vae = self.pipeline.vae
        latents = vae.encode(folded(video).to(vae.dtype)).latent_dist.mode()
        return (latents - self._channel("latents_mean", latents)) / self._channel("latents_std", latents)

    def decode(self, latents: Latent) -> Video:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype)
        latents = latents * self._channel("latents_std", latents) + self._channel("latents_mean", latents)
        return folded(vae.decode(latents, return_dict=False)[0])

    def _channel(self, name: str, latents: Latent) -> Tensor:
        return torch.tensor(self.pipeline.vae.config[name]).view(1, -1, 1, 1, 1).to(latents)

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        return denoiser(
            hidden_states=x_t.to(denoiser.dtype),
            encoder_hidden_states=condition["text"].to(denoiser.dtype),
            timestep=self.schedule.timestep(t),
            return_dict=False,
        )[0]
