"""MPS: human preference for an image given its prompt, under a condition (Zhang et al., CVPR 2024).

CLIP ViT-H/14's image tokens attend four times to the prompt tokens that are related to the condition, a list of words;
the score is exp(logit scale) cos(first image token, prompt). Only the weights for the overall preference are published
(github.com/Kwai-Kolors/MPS).

The published file is a pickle of a whole module, which could run arbitrary code when loaded in the usual way;
`weights.read_module` reads only its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from besttake.rewards.networks.image_critic import (
    CLIP_H,
    ImageCritic,
    empty_network,
    hf_clip_preprocess,
    read_config,
    read_tokenizer,
    token_ids,
)
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_module, read_tensors
from besttake.types import CriticCard

FILE = "MPS_overall_checkpoint"
OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The condition of the overall preference, from the repository's README."""
THRESHOLD = 0.3
"""Prompt tokens are related to the condition if their similarity exceeds this fraction of the most similar token's.
The value is that of the authors' evaluation code; `forward` in their repository uses 0.01."""


def load(path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean") -> MpsCritic:
    """Load the critic from a folder with `MPS_overall_checkpoint.pth`, or its state dict as `.safetensors`.

    CLIP's `config.json` and tokenizer are the folder's, or those of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.

    Raises:
        ValueError: the folder is missing, or it has other weights.
    """
    name = MpsCritic.name
    if path is None:
        raise ValueError(
            f"critic {name}: its weights are not on the hub; download {FILE}.pth (link in the README of "
            "github.com/Kwai-Kolors/MPS) and give its folder as path"
        )
    folder = find_checkpoint(name, path, f"{FILE}.*", "*.json", "merges.txt")
    file = folder / f"{FILE}.safetensors"
    if file.is_file():
        published = dict(read_tensors(name, file))
    elif (file := file.with_suffix(".pth")).is_file():
        published = read_module(name, file)
    else:
        raise ValueError(f"critic {name}: there is no {file.name} in {folder}, nor the same as .safetensors")
    if missing := [key for key in (QUERY, KEYS_VALUES, WIDER) if key not in published]:
        raise ValueError(f"critic {name}: {file} is no MPS checkpoint: it lacks {', '.join(missing)}")
    clip = folder if (folder / "config.json").is_file() else find_checkpoint(name, CLIP_H, "config.json")
    config = read_config(name, clip)
    network = empty_network(name, lambda: MpsNetwork(config, **sizes(published)))
    load_weights(name, network, published, network_name, device=device)
    return MpsCritic(network.to(device), read_tokenizer(name, folder, CLIP_H), frames, aggregate)


class MpsCritic(ImageCritic):
    """A `Reward`, mostly from 5 to 18; only differences between videos of one prompt are meaningful.

    Args:
        condition: words for the aspects to judge; the published weights were trained with `OVERALL`.
    """

    name = "mps"
    dimensions = ("preference",)
    card = CriticCard(
        "MPS, Zhang et al., CVPR 2024; github.com/Kwai-Kolors/MPS",
        "MIT",
        {"preference": (5.0, 18.0)},
        resolution="shorter side 224, middle square",
        memory=4.4,
    )
    network: MpsNetwork

    def __init__(
        self,
        network: MpsNetwork,
        tokenizer: CLIPTokenizer,
        frames: int = 8,
        aggregate: str = "mean",
        condition: str = OVERALL,
    ):
        super().__init__(network, frames, aggregate)
        self.tokenizer = tokenizer
        self.condition = self.ids([condition])

    def ids(self, texts: list[str]) -> Int[Tensor, "b n"]:
        """Token ids padded to the full length, since padding is attended to like any token."""
        max_length = self.network.clip.config.text_config.max_position_embeddings
        return token_ids(self.tokenizer, texts, max_length, pad_to_max=True).to(self.device)

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        pixel_values = hf_clip_preprocess(frames.flatten(0, 1), self.network.clip.config.vision_config.image_size)
        return self.network(pixel_values.unflatten(0, frames.shape[:2]), self.ids(prompts), self.condition)


class MpsNetwork(nn.Module):
    """CLIP with cross-attention from image tokens to prompt tokens before the comparison.

    Args:
        width, heads, head_width, inner, layers: sizes of the cross-attention model.
    """

    def __init__(self, clip: CLIPConfig, width: int, heads: int, head_width: int, inner: int, layers: int):
        super().__init__()
        self.clip: Any = CLIPModel(clip)
        self.cross: Any = nn.ModuleList(
            nn.ModuleList([CrossBlock(width, heads, head_width, inner), SelfBlock(width, heads, head_width, inner)])
            for _ in range(layers)
        )

    def forward(
        self, pixel_values: Float[Tensor, "b f 3 side side"], ids: Int[Tensor, "b n"], condition: Int[Tensor, "1 n"]
    ) -> Float[Tensor, "b f"]:
        text, whole = self.read(ids)
        condition_tokens, _ = self.read(condition)
        frames = pixel_values.shape[1]
        x = self.clip.vision_model(pixel_values.flatten(0, 1)).last_hidden_state  # not normalised after the last layer
        x = self.clip.visual_projection(x)
        context, mask = (each.repeat_interleave(frames, 0) for each in (text, related_tokens(text, condition_tokens)))
        for cross_block, self_block in self.cross:
            x = self_block(cross_block(x, context, mask))
        cosine = F.cosine_similarity(x[:, 0].unflatten(0, (-1, frames)), whole[:, None], dim=-1)
        return self.clip.logit_scale.exp() * cosine

    def read(self, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        """Token embeddings and text embedding in the shared image-text space."""
        out = self.clip.text_model(ids)
        return self.clip.text_projection(out.last_hidden_state), self.clip.text_projection(out.pooler_output)


def related_tokens(text: Float[Tensor, "b n d"], condition_tokens: Float[Tensor, "1 m d"]) -> Bool[Tensor, "b n"]:
    """Mask of the tokens of each text that are related to the condition, relative to the most similar token."""
    similarity = (text @ condition_tokens.transpose(1, 2)).amax(-1)
    return similarity / similarity.amax(-1, keepdim=True) > THRESHOLD


class CrossBlock(nn.Module):
    """Multi-query cross-attention from image to text tokens, in parallel with a gated feed-forward layer."""

    def __init__(self, width: int, heads: int, head_width: int, inner: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff = nn.Sequential(nn.Linear(width, 2 * inner, bias=False), Gated(), nn.Linear(inner, width, bias=False))

    def forward(
        self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b l d"]:
        y = self.norm(x)
        query = self.to_q(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.to_kv(context)[:, None].chunk(2, dim=-1)
        return x + self.to_out(multi_query_attention(query, key, value, mask[:, None, None])) + self.ff(y)


class SelfBlock(nn.Module):
    """Multi-query self-attention with rotary positions, in parallel with a gated feed-forward layer (PaLM)."""

    def __init__(self, width: int, heads: int, head_width: int, inner: int):
        super().__init__()
        self.heads = heads
        self.parts = heads * head_width, head_width, head_width, 2 * inner
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff_out = nn.Sequential(Gated(), nn.Linear(inner, width, bias=False))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        query, key, value, inner = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        query = apply_rotary(query.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        return (
            x
            + self.attn_out(multi_query_attention(query, apply_rotary(key[:, None]), value[:, None]))
            + self.ff_out(inner)
        )


class Gated(nn.Module):
    """SwiGLU: the second half of the channels gates the first."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


def multi_query_attention(
    query: Float[Tensor, "b h l d"], key: Float[Tensor, "b 1 n d"], value: Float[Tensor, "b 1 n d"], mask: Any = None
) -> Float[Tensor, "b l hd"]:
    key, value = (each.expand(-1, query.shape[1], -1, -1) for each in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)


def apply_rotary(x: Float[Tensor, "b h l d"]) -> Float[Tensor, "b h l d"]:
    """Rotary position embedding (arXiv 2104.09864), rotating the first half of the channels against the second."""
    length, width = x.shape[-2:]
    speed = 10000 ** -(torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angle = torch.arange(length, device=x.device)[:, None] * speed
    angle = torch.cat([angle, angle], -1)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


FIRST = "cross_model.layers.0.0.fn."
QUERY, KEYS_VALUES, WIDER = f"{FIRST}to_q.weight", f"{FIRST}to_kv.weight", f"{FIRST}ff.0.weight"


def sizes(published: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of the cross-attention model in a published state dict."""
    across, width = published[QUERY].shape
    head_width = len(published[KEYS_VALUES]) // 2
    return {
        "width": width,
        "heads": across // head_width,
        "head_width": head_width,
        "inner": len(published[WIDER]) // 2,
        "layers": sum(name.startswith("cross_model.") and name.endswith(".0.fn.norm.weight") for name in published),
    }


def network_name(name: str) -> str | None:
    """Map a published weight name to ours; None for buffers that are not learned."""
    if name.endswith(("position_ids", "inv_freq")):
        return None
    if name.startswith("cross_model.layers."):
        return name.replace("cross_model.layers.", "cross.").replace(".fn.", ".")
    return f"clip.{name.removeprefix('model.')}"
