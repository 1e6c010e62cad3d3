"""Shared code of the critics based on Qwen2-VL: patches, chat template, and the network with a reward head.

Both critics were trained with embeddings but no positions as input to the language model. It therefore uses positions
0, 1, 2, ... on all three rotary axes, instead of multimodal rotary positions (time, height and width of image tokens).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from besttake.rewards.networks.image_critic import build_from_files

Media = Literal["image", "video"]

PATCH, MERGE, TEMPORAL_PATCH = 14, 2, 2
"""Patch size in pixels, token size in patches, frames per patch."""

EMBEDDING = "model.language_model.embed_tokens.weight"


def grid_size(critic: str, height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """The size to resize a frame to: sides of whole tokens, `least` to `most` pixels, about the same aspect ratio.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"critic {critic}: a frame of {height} x {width} is too long; expected sides with a ratio of at most 200"
        )
    side = PATCH * MERGE
    rows, columns = (max(1, round(length / side)) for length in (height, width))
    if rows * columns * side**2 > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(length / shrink / side)) for length in (height, width))
    elif rows * columns * side**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(length * grow / side) for length in (height, width))
    return rows * side, columns * side


def to_patches(frames: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "p 1176"], Int[Tensor, "1 3"]]:
    """Patches of an even number of frames, two frames each, and the number of patches in time, height, width.

    The four patches of a token are consecutive.
    """
    n, _, height, width = frames.shape
    rows, columns = height // PATCH, width // PATCH
    blocks = frames.reshape(
        n // TEMPORAL_PATCH, TEMPORAL_PATCH, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH
    )  # t, frame, channel, token row, row in it, y, token column, column in it, x
    flat = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * TEMPORAL_PATCH * PATCH**2)
    return flat, torch.tensor([[n // TEMPORAL_PATCH, rows, columns]], device=frames.device)


def chat_ids(tokenizer: Any, text: str, media: Media, tokens: int) -> Int[Tensor, "1 n"]:
    """Token ids of a question about an image or video of `tokens` tokens, in Qwen2-VL's chat template."""
    pixel_values = f"<|vision_start|>{f'<|{media}_pad|>' * tokens}<|vision_end|>"
    chat = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{pixel_values}{text}<|im_end|>\n<|im_start|>assistant\n"
    )
    return tokenizer(chat, return_tensors="pt").input_ids


def token_count(grid: Int[Tensor, "1 3"]) -> int:
    return int(grid.prod()) // MERGE**2


class Qwen2VLReward(nn.Module):
    """Qwen2-VL with a reward head instead of its language head."""

    def __init__(self, config: Qwen2VLConfig, head: nn.Module):
        super().__init__()
        self.model = Qwen2VLModel(config)
        self.rm_head = head

    @property
    def device(self) -> torch.device:
        return self.model.visual.patch_embed.proj.weight.device

    def hidden(
        self,
        ids: Int[Tensor, "b n"],
        pixel_values: Float[Tensor, "p 1176"],
        grid_thw: Int[Tensor, "m 3"],
        media: Media,
        mask: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Last hidden states at each token of `ids`; `pixel_values` are the patches of all images or videos.

        Args:
            mask: 1 for tokens, 0 for padding; None = no padding.
        """
        position_ids = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        visual = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
        inputs = dict(zip(visual[media], (pixel_values, grid_thw), strict=True))
        outputs = self.model(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False, **inputs)
        return outputs.last_hidden_state


def read_config(critic: str, raw: Mapping[str, Any], state: Mapping[str, Tensor], tokenizer: Any) -> Qwen2VLConfig:
    """The network's configuration, with the vocabulary size of the weights (resized to the tokenizer in training).

    Raises:
        ValueError: the configuration is not Qwen2-VL's, or the tokenizer has more tokens than the weights.
    """
    config = build_from_files(
        critic, lambda: Qwen2VLConfig.from_dict(dict(raw)), "its configuration is not one of Qwen2-VL"
    )
    text = config.get_text_config()
    tokens = len(state[EMBEDDING]) if EMBEDDING in state else text.vocab_size
    if len(tokenizer) > tokens:
        raise ValueError(
            f"critic {critic}: its tokenizer has {len(tokenizer)} tokens but its weights only {tokens}; "
            "give the tokenizer that belongs to the weights"
        )
    text.vocab_size = tokens
    return config


def network_name(name: str) -> str | None:
    """Map a published name (transformers 4, perhaps PEFT) to that of `Qwen2VLReward`; None for the language head."""
    name = name.removeprefix("base_model.model.")
    if name.startswith("lm_head."):
        return None
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name
