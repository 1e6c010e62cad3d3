"""ImageReward: human preference for an image given its prompt (Xu et al., arXiv 2304.05977).

BLIP's text encoder reads the prompt with cross-attention to the image in every layer; five linear layers map its first
token to a score, which is standardised over the authors' images (mean 0, deviation 1). Original code:
github.com/THUDM/ImageReward.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from besttake.rewards.frames import clip_preprocess
from besttake.rewards.networks.image_critic import ImageCritic, empty_network, rating_head, read_tokenizer
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_json, read_tensors
from besttake.types import CriticCard

SOURCE = "THUDM/ImageReward"
FILE = "ImageReward"
TOKENIZER = "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35
"""Longest prompt in tokens; the rest is truncated."""
HEADS = 16
"""Attention heads of the ViT-L/16, which neither the weights nor `med_config.json` contain."""


def load(
    path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean"
) -> ImageRewardCritic:
    """Load the critic from a folder or hub id with `ImageReward.pt` or `.safetensors`, and `med_config.json`.

    The tokenizer is the folder's, or that of `google-bert/bert-base-uncased`.

    Raises:
        ValueError: a file is missing or broken.
    """
    name = ImageRewardCritic.name
    folder = find_checkpoint(name, path or SOURCE, f"{FILE}.*", "med_config.json")
    file = folder / f"{FILE}.safetensors"
    file = file if file.is_file() else folder / f"{FILE}.pt"
    if not file.is_file():
        raise ValueError(f"critic {name}: there is no {FILE}.pt in {folder}; give a folder with that file of {SOURCE}")
    published = dict(read_tensors(name, file))  # memory-mapped, not read yet
    if missing := [key for key in (PATCHES, PLACES) if key not in published]:
        raise ValueError(f"critic {name}: {file} holds no BLIP: it lacks {', '.join(missing)}")
    settings = read_json(name, folder / "med_config.json")
    network = empty_network(name, lambda: ImageRewardNetwork(vision_of(published), text_of(settings, published)))
    load_weights(name, network, published, network_name, device=device)
    tokenizer = read_tokenizer(name, folder, TOKENIZER, BertTokenizer)
    return ImageRewardCritic(network.to(device), tokenizer, frames, aggregate)


class ImageRewardCritic(ImageCritic):
    """A `Reward`; generated videos mostly score -2.3 to 2."""

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
        max_length = min(MAX_TOKENS, self.network.text.config.max_position_embeddings)
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        ids, mask = (tokens[key].to(self.device).repeat_interleave(frames.shape[1], 0) for key in KEYS)
        pixel_values = clip_preprocess(frames.flatten(0, 1), self.network.vision.config.image_size)
        raw = self.network(pixel_values, ids, mask).unflatten(0, frames.shape[:2])
        return (raw - MEAN) / STD


class ImageRewardNetwork(nn.Module):
    """BLIP's image and text encoders, and the head."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig):
        super().__init__()
        self.vision: Any = BlipVisionModel(vision)
        self.text: Any = BlipTextModel(text, add_pooling_layer=False)
        self.layers = rating_head(text.hidden_size)

    def forward(
        self, pixel_values: Float[Tensor, "n 3 side side"], ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]
    ) -> Float[Tensor, "n"]:
        return self.layers(self.read(pixel_values, ids, mask)).squeeze(-1)

    def read(
        self, pixel_values: Float[Tensor, "n 3 side side"], ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]
    ) -> Float[Tensor, "n d"]:
        """The text encoder's first token with cross-attention to the image; `mask` is 0 where the ids are padding."""
        picture = self.vision(pixel_values).last_hidden_state
        no_mask = torch.ones(picture.shape[:2], dtype=torch.long, device=picture.device)
        text = self.text(ids, mask, encoder_hidden_states=picture, encoder_attention_mask=no_mask)
        return text.last_hidden_state[:, 0]


KEYS = ("input_ids", "attention_mask")
PATCHES, PLACES = "blip.visual_encoder.patch_embed.proj.weight", "blip.visual_encoder.pos_embed"


def vision_of(published: Mapping[str, Tensor]) -> BlipVisionConfig:
    """The ViT's configuration, from a published state dict; the epsilon of its norms is timm's."""
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
    """The text encoder's configuration from `med_config.json`, with the ViT's width for cross-attention."""
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


def network_name(name: str) -> str | None:
    """Map a published weight name to ours; None for BLIP's pretraining heads."""
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
