"""Mochi 1 (Genmo 2024, https://github.com/genmoai/mochi): rectified flow, its clock from the noise to the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.models.attention_processor import MochiAttnProcessor2_0
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

from besttake.models.base import Size, VideoModel
from besttake.models.networks.processors import MochiProcessor, replace_processors
from besttake.models.schedules import RectifiedFlow
from besttake.types import Condition, Latent, Time

THRESHOLD = 0.025
"""Noise that the first half of the sampling steps removes, in equal parts; the second half removes the rest."""


class Mochi(VideoModel):
    pipelines = ("MochiPipeline",)
    text_outputs = ("text", "mask")
    guidance = 4.5
    steps = 64
    frame_rate = 30.0

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        replace_processors(pipeline.transformer, MochiAttnProcessor2_0, MochiProcessor())
        self.schedule = RectifiedFlow(to_data=True, backwards=True)

    def default_size(self) -> Size:
        return 163, self.pipeline.default_height, self.pipeline.default_width

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        time, space = self.pipeline.vae_temporal_scale_factor, self.pipeline.vae_spatial_scale_factor
        config = self.pipeline.transformer.config
        self.check_size(frames, height, width, time, space * config.patch_size)
        return config.in_channels, (frames - 1) // time + 1, height // space, width // space

    def longest_prompt(self) -> int:
        return min(256, self.pipeline.tokenizer.model_max_length)

    def latents_mean_and_scale(self) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        return self.per_channel(config.latents_mean), self.per_channel(config.latents_std) / config.scaling_factor

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        return denoiser(
            hidden_states=x_t.to(denoiser.dtype),
            encoder_hidden_states=condition["text"].to(denoiser.dtype),
            encoder_attention_mask=condition["mask"],
            timestep=self.schedule.timestep(t),
            return_dict=False,
        )[0]

    def set_timesteps_kwargs(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        return {"sigmas": linear_quadratic_schedule(steps, THRESHOLD) if steps > 1 else [1.0]}
