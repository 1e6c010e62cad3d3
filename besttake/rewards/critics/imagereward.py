"""ImageReward: how much people like a picture for its prompt (Xu et al., arXiv 2304.05977).

BLIP's text encoder reads the prompt while it looks at the picture, in every layer, and five linear layers make a
number of its first token. The reward is standardised over the authors' pictures: 0 is their mean, 1 their deviation.
github.com/THUDM/ImageReward holds the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from besttake.rewards.frames import clip_view
from besttake.rewards.networks.image_critic import ImageCritic, empty, rating_head, read_tokenizer
from besttake.rewards.networks.weights import checkpoint, load_weights, read_json, read_tensors
from besttake.types import CriticCard

SOURCE = "THUDM/ImageReward"
FILE = "ImageReward"
TOKENIZER = "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
LONGEST = 35
"""The most tokens of a prompt that it reads."""
HEADS = 16
"""Of the ViT-L/16 that sees; the one number that neither the weights nor `med_config.json` tell."""


def load(
    path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean"
) -> ImageRewardCritic:
    """The critic of a folder or hub id with `ImageReward.pt`, or `.safetensors`, and `med_config.json`.

    The tokenizer is the folder's, or that of `google-bert/bert-base-uncased`.

    Raises:
        ValueError: there are no such files, or they are broken.
    """
    name = ImageRewardCritic.name
    folder = checkpoint(name, path or SOURCE, f"{FILE}.*", "med_config.json")
    file = folder / f"{FILE}.safetensors"
    file = file if file.is_file() else folder / f"{FILE}.pt"
    if not file.is_file():
        raise ValueError(f"critic {name}: there is no {FILE}.pt in {folder}; give a folder with that file of {SOURCE}")
    published = dict(read_tensors(name, file))  # mapped from the file, not read yet
    if missing := [key for key in (PATCHES, PLACES) if key not in published]:
        raise ValueError(f"critic {name}: {file} holds no BLIP: it lacks {', '.join(missing)}")
    settings = read_json(name, folder / "med_config.json")
    network = empty(name, lambda: ImageRewardNetwork(vision_of(published), text_of(settings, published)))
    load_weights(name, network, published, renamed, device=device)
    tokenizer = read_tokenizer(name, folder, TOKENIZER, BertTokenizer)
    return ImageRewardCritic(network.to(device), tokenizer, frames, aggregate)


class ImageRewardCritic(ImageCritic):
    """A `Reward`, of what models make mostly -2.3 to 2."""

    name = "imagereward"
    dimensions = ("preference",)
    card = CriticCard(
        "ImageReward, arXiv 2304.05977; THUDM/ImageReward",
        "Apache-2.0",
        {"preference": (-2.3, 2.0)},
        resolution="shorter side 224, middle square",
        memory=1.8,
    )
    network: ImageRewardNetwork

    def __init__(self, network: ImageRewardNetwork, tokenizer: BertTokenizer, frames: int = 8, aggregate: str = "mean"):
        super().__init__(network, frames, aggregate)
        self.tokenizer = tokenizer

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        longest = min(LONGEST, self.network.text.config.max_position_embeddings)
        words = self.tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        ids, there = (words[key].to(self.device).repeat_interleave(frames.shape[1], 0) for key in KEYS)
        seen = clip_view(frames.flatten(0, 1), self.network.vision.config.image_size)
        raw = self.network(seen, ids, there).unflatten(0, frames.shape[:2])
        return (raw - MEAN) / STD


class ImageRewardNetwork(nn.Module):
    """BLIP's two halves, and the head."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig):
        super().__init__()
        self.vision: Any = BlipVisionModel(vision)
        self.text: Any = BlipTextModel(text, add_pooling_layer=False)
        self.layers = rating_head(text.hidden_size)

    def forward(
        self, seen: Float[Tensor, "n 3 side side"], ids: Int[Tensor, "n t"], there: Int[Tensor, "n t"]
    ) -> Float[Tensor, "n"]:
        return self.layers(self.read(seen, ids, there)).squeeze(-1)

    def read(
        self, seen: Float[Tensor, "n 3 side side"], ids: Int[Tensor, "n t"], there: Int[Tensor, "n t"]
    ) -> Float[Tensor, "n d"]:
        """What the text's first token holds after looking at the picture; `there` is 0 where the ids are padding."""
        picture = self.vision(seen).last_hidden_state
        everywhere = torch.ones(picture.shape[:2], dtype=torch.long, device=picture.device)
        text = self.text(ids, there, encoder_hidden_states=picture, encoder_attention_mask=everywhere)
        return text.last_hidden_state[:, 0]


KEYS = ("input_ids", "attention_mask")
PATCHES, PLACES = "blip.visual_encoder.patch_embed.proj.weight", "blip.visual_encoder.pos_embed"


def vision_of(published: Mapping[str, Tensor]) -> BlipVisionConfig:
    """The sizes of the ViT in a published state dict; its norms' epsilon is timm's."""
    width, _, _, patch = published[PATCHES].shape
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=sum(name.startswith(BLOCKS) and name.endswith("norm1.weight") for name in published),
        num_attention_heads=HEADS,
        patch_size=patch,
        image_size=patch * round((published[PLACES].shape[1] - 1) ** 0.5),
        layer_norm_eps=1e-6,
    )


def text_of(settings: Mapping[str, Any], published: Mapping[str, Tensor]) -> BlipTextConfig:
    """`med_config.json`; as in the original, the width of what it looks at is the ViT's, whatever the file says."""
    own = {key: settings[key] for key in SIZES}
    return BlipTextConfig(**own, encoder_hidden_size=published[PATCHES].shape[0], is_decoder=True, use_cache=False)


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
    "hidden_act",
)
BLOCKS = "blip.visual_encoder.blocks."
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks.": "encoder.layers.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
}


def renamed(name: str) -> str | None:
    """From the published name to ours; None for the heads that BLIP is pretrained with."""
    part, _, rest = name.removeprefix("blip.").partition(".")
    if part == "mlp":
        return rest
    if part == "text_encoder":
        return None if rest.endswith("position_ids") else f"text.{rest}"
    if part != "visual_encoder":
        return None
    for old, new in VISION.items():
        rest = rest.replace(old, new)
    return f"vision.post_layernorm{rest[4:]}" if rest.startswith("norm.") else f"vision.{rest}"
