"""LTX-2 (HaCohen et al. 2026, arXiv 2601.03233) without its sound: the video half of a network for video and audio.

The cross-attention between the two halves is switched off here (`isolate_modalities`); the audio half's input then does
not matter, and is as small as possible. The pipeline itself makes this prediction for its modality guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from besttake.models.base import Size
from besttake.models.families import ltx
from besttake.types import Condition


class LTX2(ltx.LTX):
    pipelines = ("LTX2Pipeline",)
    steps = 30
    lora_targets = tuple(f"{part}.{layer}" for part in ("attn1", "attn2") for layer in ltx.LTX.lora_targets)
    """Of the video half alone; the audio half's are called `audio_attn1` and so on."""
    text_parts = ("text_encoder", "connectors")
    frame_rate = 24.0
    longest = 1024

    def default_size(self) -> Size:
        return 121, 512, 768

    def embed(self, prompts: list[str]) -> Condition:
        """What the video half's connector makes of all layers of the text encoder."""
        encoded = super().embed(prompts)
        side = self.pipeline.tokenizer.padding_side
        text, _, mask = self.pipeline.connectors(encoded["text"], encoded["mask"], padding_side=side)
        return {"text": text, "mask": mask}

    def predict_tokens(
        self, denoiser: Any, tokens: Tensor, timestep: Tensor, condition: Condition, size: Sequence[int]
    ) -> Tensor:
        frames, height, width = size
        config = self.pipeline.transformer.config
        words = config.caption_channels if config.use_prompt_embeddings else config.audio_cross_attention_dim
        return denoiser(
            hidden_states=tokens,
            audio_hidden_states=tokens.new_zeros(len(tokens), 1, config.audio_in_channels),
            encoder_hidden_states=condition["text"].to(denoiser.dtype),
            audio_encoder_hidden_states=tokens.new_zeros(len(tokens), 1, words),
            encoder_attention_mask=condition["mask"],
            timestep=timestep,
            sigma=timestep,
            num_frames=frames,
            height=height,
            width=width,
            fps=self.fps,
            audio_num_frames=1,
            isolate_modalities=True,
            return_dict=False,
        )[0]
