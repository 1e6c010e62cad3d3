"""What the critics built on Qwen2-VL share: patches of 14 pixels, the chat template, and the network under the head.

Both critics pass ready embeddings to the language model and no positions, so that it counts tokens 0, 1, 2, ... on all
three rotary axes instead of giving image tokens their place in time, height and width (multimodal rotary positions).
They were trained so, and are used so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from besttake.rewards.networks.image_critic import build

Media = Literal["image", "video"]

PATCH, MERGE, TIME = 14, 2, 2
"""Pixels on a side of a patch, patches on a side of a token, frames in both."""

EMBEDDING = "model.language_model.embed_tokens.weight"


def grid_size(critic: str, height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """The size a frame is resized to: sides of whole tokens, `least` to `most` pixels in all, about the same shape.

    Raises:
        ValueError: one side is over 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"critic {critic}: a frame of {height} x {width} is too long; one side may be 200 times the other"
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


def patches(frames: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "p 1176"], Int[Tensor, "1 3"]]:
    """An even number of frames as rows of two frames' patches, and how many patches there are in time, height, width.

    The four patches that become one token follow each other.
    """
    n, _, height, width = frames.shape
    rows, columns = height // PATCH, width // PATCH
    blocks = frames.reshape(
        n // TIME, TIME, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH
    )  # t, frame, channel, token row, row in it, y, token column, column in it, x
    flat = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * TIME * PATCH**2)
    return flat, torch.tensor([[n // TIME, rows, columns]], device=frames.device)


def chat_ids(tokenizer: Any, text: str, media: Media, tokens: int) -> Int[Tensor, "1 n"]:
    """A question about an image or video of so many tokens, in Qwen2-VL's chat template."""
    seen = f"<|vision_start|>{f'<|{media}_pad|>' * tokens}<|vision_end|>"
    chat = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{seen}{text}<|im_end|>\n<|im_start|>assistant\n"
    )
    return tokenizer(chat, return_tensors="pt").input_ids


def tokens_of(grid: Int[Tensor, "1 3"]) -> int:
    return int(grid.prod()) // MERGE**2


class Qwen2VLReward(nn.Module):
    """Qwen2-VL without its language head, and a head for rewards."""

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
        seen: Float[Tensor, "p 1176"],
        grids: Int[Tensor, "m 3"],
        media: Media,
        mask: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """What the network thinks at each token of `ids`, where `seen` are the patches of all images or videos.

        Args:
            mask: 1 for tokens, 0 for padding; None = no padding.
        """
        places = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        visual = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
        inputs = dict(zip(visual[media], (seen, grids), strict=True))
        outputs = self.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, **inputs)
        return outputs.last_hidden_state


def read_config(critic: str, raw: Mapping[str, Any], state: Mapping[str, Tensor], tokenizer: Any) -> Qwen2VLConfig:
    """The network's configuration with as many tokens as the weights have, which were cut to the tokenizer's length.

    Raises:
        ValueError: it is not one of Qwen2-VL, or the tokenizer knows tokens that the weights do not.
    """
    config = build(critic, lambda: Qwen2VLConfig.from_dict(dict(raw)), "its configuration is not one of Qwen2-VL")
    text = config.get_text_config()
    known = len(state[EMBEDDING]) if EMBEDDING in state else text.vocab_size
    if len(tokenizer) > known:
        raise ValueError(
            f"critic {critic}: its tokenizer has {len(tokenizer)} tokens but its weights only {known}; "
            "give the tokenizer that belongs to the weights"
        )
    text.vocab_size = known
    return config


def renamed(name: str) -> str | None:
    """From a published name, of transformers 4 and perhaps PEFT, to that of `Qwen2VLReward`; None for the old head."""
    name = name.removeprefix("base_model.model.")
    if name.startswith("lm_head."):
        return None
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name
