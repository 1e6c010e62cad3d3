"""CogVideoX (Yang et al. 2024, arXiv 2408.06072), text-to-video: v-prediction with zero terminal SNR."""

from __future__ import annotations

from typing import Any

from besttake.models.base import VideoModel, folded
from besttake.schedules import VPrediction
from besttake.types import Condition, Latent, Time, Video


class CogVideoX(VideoModel):
    pipelines = ("CogVideoXPipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.frame_rate = 16.0 if pipeline.transformer.config.patch_size_t else 8.0  # 1.5, and 2B and 5B
        self.schedule = VPrediction(pipeline.scheduler.alphas_cumprod)

    def default_size(self) -> tuple[int, int, int]:
        config, scale = self.denoiser.config, self.pipeline.vae_scale_factor_spatial
        return config.sample_frames, config.sample_height * scale, config.sample_width * scale

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        time, space = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        own = self.default_size()
        if self.denoiser.config.use_learned_positional_embeddings and (frames, height, width) != own:
            raise ValueError(
                f"{frames} frames of {height} x {width} do not fit {self.source}: its positions are learned, "
                f"so it takes {own[0]} frames of {own[1]} x {own[2]} only"
            )
        config = self.denoiser.config
        self.check_size(frames, height, width, time, space * config.patch_size, config.patch_size_t or 1)
        return self.denoiser.config.in_channels, (frames - 1) // time + 1, height // space, width // space

    def longest_prompt(self) -> int:
        return self.denoiser.config.max_text_seq_length

    def embed(self, prompts: list[str]) -> Condition:
        embeddings, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.longest_prompt()
        )
        return {"text": embeddings}

    def encode(self, video: Video) -> Latent:
        posterior = self.pipeline.vae.encode(folded(video).to(self.pipeline.vae.dtype)).latent_dist
        return posterior.mode() * self.pipeline.vae_scaling_factor_image

    def decode(self, latents: Latent) -> Video:
        return folded(self.pipeline.decode_latents(folded(latents).to(self.pipeline.vae.dtype)))

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        prediction = denoiser(
            hidden_states=folded(x_t).to(denoiser.dtype),
            encoder_hidden_states=condition["text"].to(denoiser.dtype),
            timestep=self.schedule.timestep(t),
            image_rotary_emb=self._rotary(x_t),
            return_dict=False,
        )[0]
        return folded(prediction)

    def _rotary(self, x_t: Latent):
        if not self.denoiser.config.use_rotary_positional_embeddings:
            return None
        frames, height, width = x_t.shape[2:]
        scale = self.pipeline.vae_scale_factor_spatial
        return self.pipeline._prepare_rotary_positional_embeddings(height * scale, width * scale, frames, x_t.device)
