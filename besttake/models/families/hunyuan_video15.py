"""HunyuanVideo 1.5 (arXiv 2511.18870), text-to-video: rectified flow.

One network serves text- and image-to-video: its inputs for latents of a first frame and a mask are zero here, and there
are no image features. Prompts are encoded by Qwen2.5-VL, and text in quotation marks, which is to appear in the video,
also by ByT5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders import HunyuanVideoLoraLoaderMixin
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from torch import Tensor, nn

from besttake.models.base import Size, VideoModel
from besttake.models.parts import PipelineParts
from besttake.models.schedules import RectifiedFlow
from besttake.types import Condition, Latent, Time


class HunyuanVideo15Parts(PipelineParts):
    def configure_vae(self, vae: Any) -> nn.Module:
        """The autoencoder, always with slicing: it fails on several clips at once.

        (The mask of its attention lacks an axis: diffusers' pull request 13133.)
        """
        vae.enable_slicing()
        return super().configure_vae(vae)


class HunyuanVideo15(VideoModel):
    pipelines = ("HunyuanVideo15Pipeline",)
    parts_class = HunyuanVideo15Parts
    text_parts = ("text_encoder", "text_encoder_2")
    text_outputs = ("text", "mask", "text_2", "text_2_mask")
    frame_rate = 24.0

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        self.schedule = RectifiedFlow(pipeline.scheduler.config.shift)

    def default_size(self) -> Size:
        """Five seconds in 16:9, with about as many pixels as a square of the network's target size."""
        pipeline = self.pipeline
        return 121, *pipeline.video_processor.calculate_default_height_width(9, 16, pipeline.target_size)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        time, space = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        self.check_size(frames, height, width, time, space * self.pipeline.transformer.config.patch_size)
        return self.pipeline.num_channels_latents, (frames - 1) // time + 1, height // space, width // space

    def longest_prompt(self) -> int:
        """Tokens of Qwen without the start of the template, which is cropped; ByT5's limit is 256 bytes."""
        return self.pipeline.tokenizer_max_length

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt with the end of the template, which is not cropped."""
        chat = format_text_input([prompt], self.pipeline.system_message)
        tokens = self.pipeline.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        return len(tokens.input_ids[0]) - self.pipeline.prompt_template_encode_start_idx

    def embed(self, prompts: list[str]) -> Condition:
        outputs = self.pipeline.encode_prompt(prompts, batch_size=len(prompts), device=self.device)
        return dict(zip(self.text_outputs, outputs, strict=True))

    def latents_mean_and_scale(self) -> tuple[float, float]:
        return 0.0, 1 / self.pipeline.vae.config.scaling_factor

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        dtype = denoiser.dtype  # looked up once: diffusers walks through all modules for it
        first_frame, mask = torch.zeros_like(x_t), torch.zeros_like(x_t[:, :1])
        text, text_mask = _without_padding(condition["text"], condition["mask"])
        text_2, text_2_mask = _without_padding(condition["text_2"], condition["text_2_mask"])
        return denoiser(
            hidden_states=torch.cat([x_t, first_frame, mask], 1).to(dtype),
            timestep=self.schedule.timestep(t).to(dtype),
            encoder_hidden_states=text.to(dtype),
            encoder_attention_mask=text_mask,
            encoder_hidden_states_2=text_2.to(dtype),
            encoder_attention_mask_2=text_2_mask,
            image_embeds=x_t.new_zeros(len(x_t), 0, self.pipeline.vision_states_dim, dtype=dtype),
            return_dict=False,
        )[0]

    def set_timesteps_kwargs(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        return {"sigmas": np.linspace(1.0, 0.0, steps + 1)[:-1]}

    def save_lora(self, folder: Path, layers: Mapping[str, dict[str, Tensor]], configs: Mapping[str, dict]) -> None:
        """The pipeline has no `load_lora_weights`; its transformer's `load_lora_adapter` reads what this writes."""
        weights: Any = layers["transformer"]
        config = configs["transformer"]
        HunyuanVideoLoraLoaderMixin.save_lora_weights(folder, weights, transformer_lora_adapter_metadata=config)

    def load_lora(self, folder: Path) -> None:
        self.pipeline.transformer.load_lora_adapter(str(folder), use_safetensors=True)


def _without_padding(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`(b, n, c)` tokens and their `(b, n)` mask, without those that are padding in every row.

    The pipeline pads text and image features to 1985 tokens, more than a small clip has.
    """
    used = mask.bool().any(0)
    return tokens[:, used], mask[:, used]
