"""CogVideoX (Yang et al. 2024, arXiv 2408.06072), text- and image-to-video: v-prediction with zero terminal SNR."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from torch import Tensor

from besttake.models.base import Size, VideoModel, swap_frames_and_channels
from besttake.models.networks.processors import CogVideoXProcessor, replace_processors
from besttake.models.schedules import VPrediction
from besttake.types import Condition, Latent, Time, Video


class CogVideoX(VideoModel):
    pipelines = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline")

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.frame_rate = 16.0 if pipeline.transformer.config.patch_size_t else 8.0  # 1.5, and 2B and 5B
        replace_processors(pipeline.transformer, CogVideoXAttnProcessor2_0, CogVideoXProcessor())
        self.schedule = VPrediction(pipeline.scheduler.alphas_cumprod)
        self.needs_first_frame = self.accepts_first_frame = "ImageToVideo" in type(pipeline).__name__

    def default_size(self) -> Size:
        config, scale = self.denoiser.config, self.pipeline.vae_scale_factor_spatial
        if config.patch_size_t and config.sample_height == config.sample_width == 300:
            return 81, 768, 1360  # 1.5's config has the range of its positions, not its training size
        return config.sample_frames, config.sample_height * scale, config.sample_width * scale

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        space, config = self.pipeline.vae_scale_factor_spatial, self.denoiser.config
        own = self.default_size()
        if config.use_learned_positional_embeddings and (frames, height, width) != own:
            raise ValueError(
                f"{frames} frames of {height} x {width} do not fit {self.source}, whose learned positions only allow "
                f"{own[0]} frames of {own[1]} x {own[2]}"
            )
        time = self.pipeline.vae_scale_factor_temporal
        if time > 1:  # the autoencoder decodes the first latent frame with the two after it, then two at a time
            time *= 2
        self.check_size(frames, height, width, time, space * config.patch_size)
        per_token = config.patch_size_t or 1  # latent frames in a token
        padded = -(-self._latent_frames(frames) // per_token) * per_token
        return config.out_channels, padded, height // space, width // space

    def _latent_frames(self, frames: int) -> int:
        return (frames - 1) // self.pipeline.vae_scale_factor_temporal + 1

    def longest_prompt(self) -> int:
        return self.denoiser.config.max_text_seq_length

    def first_frame_condition(self, first_frames: Tensor, frames: int, generator: torch.Generator | None) -> Condition:
        """Latents of the first frame, then zeros. In training noise is added to the frame, as the authors do.

        The noise's scale is log-normal, exp of a normal variable with mean -3 and standard deviation 0.5, for pixels in
        [-1, 1]. The pipeline samples from the autoencoder's posterior; this uses its mode.
        """
        if generator is not None:
            scale = (torch.randn(len(first_frames), 1, 1, 1, generator=generator) * 0.5 - 3).exp()
            noise = scale * torch.randn(first_frames.shape, generator=generator)
            first_frames = first_frames + noise.to(first_frames)
        first = super().encode(first_frames[:, None])
        if self.pipeline.vae.config.get("invert_scale_latents"):  # 1.5
            first = first / self.pipeline.vae_scaling_factor_image**2
        shape = self.latent_shape(frames, *first_frames.shape[-2:])
        rest = first.new_zeros(*first.shape[:2], shape[1] - 1, *first.shape[3:])
        return {"first_frame": torch.cat([first, rest], 2)}

    def latents_mean_and_scale(self) -> tuple[float, float]:
        return 0.0, 1 / self.pipeline.vae_scaling_factor_image

    def encode(self, video: Video) -> Latent:
        """Latents; if a token has two latent frames, the first frame is repeated to make their number even."""
        latents = super().encode(video)
        padding = self.latent_shape(*video.shape[1:2], *video.shape[3:])[1] - latents.shape[2]
        return torch.cat([latents[:, :, :1].expand(-1, -1, padding, -1, -1), latents], 2)

    def decode(self, latents: Latent, frames: int | None = None) -> Video:
        padding = latents.shape[2] - self._latent_frames(frames) if frames else 0
        return super().decode(latents[:, :, padding:])

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        channels = [x_t, condition["first_frame"]] if self.accepts_first_frame else [x_t]
        dtype = denoiser.dtype  # looked up once: diffusers walks through all modules for it
        prediction = denoiser(
            hidden_states=swap_frames_and_channels(torch.cat(channels, 1)).to(dtype),
            encoder_hidden_states=condition["text"].to(dtype),
            timestep=self.schedule.timestep(t),
            ofs=x_t.new_full((1,), 2.0) if self.denoiser.config.ofs_embed_dim else None,
            image_rotary_emb=self._rotary(x_t),
            return_dict=False,
        )[0]
        return swap_frames_and_channels(prediction)

    def _rotary(self, x_t: Latent):
        if not self.denoiser.config.use_rotary_positional_embeddings:
            return None
        frames, height, width = x_t.shape[2:]
        scale = self.pipeline.vae_scale_factor_spatial
        return self.pipeline._prepare_rotary_positional_embeddings(height * scale, width * scale, frames, x_t.device)
