"""MPS: how much people prefer a picture for its prompt, and in what (Zhang et al., CVPR 2024).

CLIP ViT-H/14's image tokens look at the tokens of the prompt, four times, but only at those that a list of words, the
condition, has to do with; the score is exp(logit scale) cos(first image token, prompt). Published are the weights for
the overall preference alone (github.com/Kwai-Kolors/MPS).

The published file is a pickle of a whole module, which would run what it likes when it is opened in the usual way:
`weights.read_module` takes the tensors out of it and runs nothing.
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
    empty,
    hub_view,
    read_config,
    read_tokenizer,
    token_ids,
)
from besttake.rewards.networks.weights import checkpoint, load_weights, read_module, read_tensors
from besttake.types import CriticCard

FILE = "MPS_overall_checkpoint"
OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The condition of the overall preference, as its README has it."""
THRESHOLD = 0.3
"""Of the likeness of the likest token: tokens above it have to do with the condition. It is that of the authors'
evaluations; the `forward` in their repository, which its README calls, has 0.01."""


def load(path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean") -> MpsCritic:
    """The critic of a folder with `MPS_overall_checkpoint.pth`, or its state dict as `.safetensors`.

    CLIP's `config.json` and tokenizer are the folder's, or those of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.

    Raises:
        ValueError: there is no such folder, or the weights are not these.
    """
    name = MpsCritic.name
    if path is None:
        raise ValueError(
            f"critic {name}: its authors put its weights on no hub; download {FILE}.pth (the link is in the README of "
            "github.com/Kwai-Kolors/MPS) and give the folder it is in"
        )
    folder = checkpoint(name, path, f"{FILE}.*", "*.json", "merges.txt")
    file = folder / f"{FILE}.safetensors"
    if file.is_file():
        published = dict(read_tensors(name, file))
    elif (file := file.with_suffix(".pth")).is_file():
        published = read_module(name, file)
    else:
        raise ValueError(f"critic {name}: there is no {file.name} in {folder}, nor the same as .safetensors")
    if missing := [key for key in (QUERY, KEYS_VALUES, WIDER) if key not in published]:
        raise ValueError(f"critic {name}: {file} is not MPS's: it lacks {', '.join(missing)}")
    clip = folder if (folder / "config.json").is_file() else checkpoint(name, CLIP_H, "config.json")
    config = read_config(name, clip)
    network = empty(name, lambda: MpsNetwork(config, **sizes(published)))
    load_weights(name, network, published, renamed, device=device)
    return MpsCritic(network.to(device), read_tokenizer(name, folder, CLIP_H), frames, aggregate)


class MpsCritic(ImageCritic):
    """A `Reward`, of what models make mostly 5 to 18; only differences between pictures of one prompt mean something.

    Args:
        condition: words for what to judge; `OVERALL` is what the published weights were trained with.
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
        """Padded to the full length: padding is attended to like any token."""
        longest = self.network.clip.config.text_config.max_position_embeddings
        return token_ids(self.tokenizer, texts, longest, full=True).to(self.device)

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        seen = hub_view(frames.flatten(0, 1), self.network.clip.config.vision_config.image_size)
        return self.network(seen.unflatten(0, frames.shape[:2]), self.ids(prompts), self.condition)


class MpsNetwork(nn.Module):
    """CLIP whose image tokens look at the prompt's before they are compared.

    Args:
        width, heads, head_width, inner, layers: of the cross model: its tokens, its attention, its feed-forward parts.
    """

    def __init__(self, clip: CLIPConfig, width: int, heads: int, head_width: int, inner: int, layers: int):
        super().__init__()
        self.clip: Any = CLIPModel(clip)
        self.cross: Any = nn.ModuleList(
            nn.ModuleList([CrossBlock(width, heads, head_width, inner), SelfBlock(width, heads, head_width, inner)])
            for _ in range(layers)
        )

    def forward(
        self, seen: Float[Tensor, "b f 3 side side"], ids: Int[Tensor, "b n"], condition: Int[Tensor, "1 n"]
    ) -> Float[Tensor, "b f"]:
        text, whole = self.read(ids)
        about, _ = self.read(condition)
        frames = seen.shape[1]
        x = self.clip.vision_model(seen.flatten(0, 1)).last_hidden_state  # not normalised after the last layer
        x = self.clip.visual_projection(x)
        context, heard = (each.repeat_interleave(frames, 0) for each in (text, concerned(text, about)))
        for look, think in self.cross:
            x = think(look(x, context, heard))
        cosine = F.cosine_similarity(x[:, 0].unflatten(0, (-1, frames)), whole[:, None], dim=-1)
        return self.clip.logit_scale.exp() * cosine

    def read(self, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        """Each token of a text and the text as a whole, where images are."""
        out = self.clip.text_model(ids)
        return self.clip.text_projection(out.last_hidden_state), self.clip.text_projection(out.pooler_output)


def concerned(text: Float[Tensor, "b n d"], about: Float[Tensor, "1 m d"]) -> Bool[Tensor, "b n"]:
    """Which tokens of each text have to do with the condition, measured by the one that has most."""
    likeness = (text @ about.transpose(1, 2)).amax(-1)
    return likeness / likeness.amax(-1, keepdim=True) > THRESHOLD


class CrossBlock(nn.Module):
    """Image tokens look at text, all heads with the same keys and values; beside it, a gated feed-forward part."""

    def __init__(self, width: int, heads: int, head_width: int, inner: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff = nn.Sequential(nn.Linear(width, 2 * inner, bias=False), Gated(), nn.Linear(inner, width, bias=False))

    def forward(
        self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b n d"], heard: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b l d"]:
        y = self.norm(x)
        query = self.to_q(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.to_kv(context)[:, None].chunk(2, dim=-1)
        return x + self.to_out(attended(query, key, value, heard[:, None, None])) + self.ff(y)


class SelfBlock(nn.Module):
    """Image tokens look at each other, told their order by rotation, and feed forward in parallel (PaLM)."""

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
        query = rotated(query.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        return x + self.attn_out(attended(query, rotated(key[:, None]), value[:, None])) + self.ff_out(inner)


class Gated(nn.Module):
    """SwiGLU: the second half of the channels opens the first."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


def attended(
    query: Float[Tensor, "b h l d"], key: Float[Tensor, "b 1 n d"], value: Float[Tensor, "b 1 n d"], mask: Any = None
) -> Float[Tensor, "b l hd"]:
    key, value = (each.expand(-1, query.shape[1], -1, -1) for each in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)


def rotated(x: Float[Tensor, "b h l d"]) -> Float[Tensor, "b h l d"]:
    """Rotary positions (arXiv 2104.09864), the halves of a head as the two axes of each plane."""
    length, width = x.shape[-2:]
    speed = 10000 ** -(torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angle = torch.arange(length, device=x.device)[:, None] * speed
    angle = torch.cat([angle, angle], -1)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


FIRST = "cross_model.layers.0.0.fn."
QUERY, KEYS_VALUES, WIDER = f"{FIRST}to_q.weight", f"{FIRST}to_kv.weight", f"{FIRST}ff.0.weight"


def sizes(published: Mapping[str, Tensor]) -> dict[str, int]:
    """Those of the cross model in a published state dict."""
    across, width = published[QUERY].shape
    head_width = len(published[KEYS_VALUES]) // 2
    return {
        "width": width,
        "heads": across // head_width,
        "head_width": head_width,
        "inner": len(published[WIDER]) // 2,
        "layers": sum(name.startswith("cross_model.") and name.endswith(".0.fn.norm.weight") for name in published),
    }


def renamed(name: str) -> str | None:
    """From the published name to ours; None for what is counted, not learned."""
    if name.endswith(("position_ids", "inv_freq")):
        return None
    if name.startswith("cross_model.layers."):
        return name.replace("cross_model.layers.", "cross.").replace(".fn.", ".")
    return f"clip.{name.removeprefix('model.')}"
