"""LTX-Video (HaCohen et al. 2025, arXiv 2501.00103): rectified flow, with more noise for larger clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from torch import Tensor

from besttake.models.base import Size, VideoModel
from besttake.models.schedules import RectifiedFlow
from besttake.types import Condition, Latent, Time


class LTX(VideoModel):
    pipelines = ("LTXPipeline",)
    text_outputs = ("text", "mask")
    guidance = 3.0
    frame_rate = 25.0
    longest = 128
    """Tokens the text encoder reads of a prompt."""

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.schedule = RectifiedFlow()

    def default_size(self) -> Size:
        return 161, 512, 704

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        time, space = self.pipeline.vae_temporal_compression_ratio, self.pipeline.vae_spatial_compression_ratio
        self.check_size(frames, height, width, time, space)
        channels = self.pipeline.transformer.config.in_channels
        return channels, (frames - 1) // time + 1, height // space, width // space

    def longest_prompt(self) -> int:
        return min(self.longest, self.pipeline.tokenizer.model_max_length)

    def latents_mean_and_scale(self) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        return self.per_channel(vae.latents_mean), self.per_channel(vae.latents_std / vae.config.scaling_factor)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode with noise level 0, the pipeline's default input of decoders from 0.9.1 on.

        0.9.1's decoder adds noise to its features, seeded here, so that decoding is deterministic.
        """
        vae = self.pipeline.vae
        time = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
        with torch.random.fork_rng(devices=[latents.device] if latents.is_cuda else []):
            torch.manual_seed(0)
            return vae.decode(latents, time, return_dict=False)[0]

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """The network takes tokens, one per position of the latents."""
        tokens = x_t.flatten(2).transpose(1, 2).to(denoiser.dtype)  # (b, f h w, c)
        prediction = self.predict_tokens(denoiser, tokens, self.schedule.timestep(t), condition, x_t.shape[2:])
        return prediction.transpose(1, 2).unflatten(2, x_t.shape[2:])

    def predict_tokens(
        self, denoiser: Any, tokens: Tensor, timestep: Tensor, condition: Condition, size: Sequence[int]
    ) -> Tensor:
        """What `denoiser` predicts of `(b, f h w, c)` tokens of latents of a size `f h w`; positions are in seconds."""
        frames, height, width = size
        space = self.pipeline.vae_spatial_compression_ratio
        return denoiser(
            hidden_states=tokens,
            encoder_hidden_states=condition["text"].to(denoiser.dtype),
            encoder_attention_mask=condition["mask"],
            timestep=timestep,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.pipeline.vae_temporal_compression_ratio / self.fps, space, space),
            return_dict=False,
        )[0]

    def schedule_for(self, shape: Sequence[int]) -> RectifiedFlow:
        config = self.pipeline.scheduler.config
        return RectifiedFlow(math.exp(self._mu(shape)) if config.use_dynamic_shifting else config.shift)

    def make_scheduler(self, steps: int, shape: Sequence[int]) -> Any:
        config = self.pipeline.scheduler.config
        terminal = config.shift_terminal if steps > 1 else None  # a single step cannot both begin at 1 and end there
        scheduler = type(self.pipeline.scheduler).from_config(config, shift_terminal=terminal)
        scheduler.set_timesteps(**self.set_timesteps_kwargs(steps, shape), device=self.device)
        return scheduler

    def set_timesteps_kwargs(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": self._mu(shape)}

    def _mu(self, shape: Sequence[int]) -> float:
        """Logarithm of the shift for latents `... c f h w`: a line through two numbers of tokens."""
        config = self.pipeline.scheduler.config
        line = config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        return calculate_shift(math.prod(shape[-3:]), *line)
