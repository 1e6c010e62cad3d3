"""HunyuanVideo (Kong et al. 2024, arXiv 2412.03603), text-to-video: rectified flow.

The released model is guidance-distilled (arXiv 2210.03142): the guidance scale is one of its inputs, and there is no
unconditional pass. Prompts are encoded as Llama's hidden states and as CLIP's pooled embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from besttake.models.base import Size, VideoModel
from besttake.models.schedules import RectifiedFlow
from besttake.types import Condition, Latent, Time

TEMPLATE: dict[str, Any] = DEFAULT_PROMPT_TEMPLATE


class HunyuanVideo(VideoModel):
    pipelines = ("HunyuanVideoPipeline",)
    text_parts = ("text_encoder", "text_encoder_2")
    frame_rate = 24.0

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.schedule = RectifiedFlow(pipeline.scheduler.config.shift)
        self.embeds_guidance = pipeline.transformer.config.guidance_embeds

    def default_size(self) -> Size:
        return 129, 720, 1280

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        time, space = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        config = self.pipeline.transformer.config
        self.check_size(frames, height, width, time, space * config.patch_size)
        return config.in_channels, (frames - 1) // time + 1, height // space, width // space

    def longest_prompt(self) -> int:
        """Tokens of Llama without the start of the template, which is cropped; CLIP uses the first 77 only."""
        return 256

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt with the end of the template, which is not cropped."""
        return super().count_tokens(TEMPLATE["template"].format(prompt)) - TEMPLATE["crop_start"]

    def embed(self, prompts: list[str]) -> Condition:
        text, pooled, mask = self.pipeline.encode_prompt(
            prompts, max_sequence_length=self.longest_prompt(), device=self.device
        )
        return {"text": text, "mask": mask, "pooled": pooled}

    def latents_mean_and_scale(self) -> tuple[float, float]:
        return 0.0, 1 / self.pipeline.vae.config.scaling_factor

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        dtype = denoiser.dtype  # looked up once: diffusers walks through all modules for it
        scale = condition["guidance"].to(dtype) * 1000 if self.embeds_guidance else None
        return denoiser(
            hidden_states=x_t.to(dtype),
            timestep=self.schedule.timestep(t),
            encoder_hidden_states=condition["text"].to(dtype),
            encoder_attention_mask=condition["mask"],
            pooled_projections=condition["pooled"].to(dtype),
            guidance=scale,
            return_dict=False,
        )[0]

    def set_timesteps_kwargs(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        return {"sigmas": np.linspace(1.0, 0.0, steps + 1)[:-1]}
