"""HPSv2.1: human preference for an image given its prompt (Wu et al., arXiv 2306.09341; github.com/tgxs002/HPSv2).

cos(image, text), without logit scale, of a CLIP ViT-H/14 fine-tuned on HPDv2. Unlike other CLIP critics, which crop the
central square, it sees the whole frame with the longer side resized to 224 and black bars. The checkpoint is an
open_clip state dict; it is converted to transformers' CLIP.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ftfy
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from besttake.rewards.frames import normalise, to_pixels
from besttake.rewards.networks.image_critic import CLIP_H, ClipCritic, empty_network, read_tokenizer
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_tensors
from besttake.types import CriticCard

SOURCE = "xswu/HPSv2"
FILE = "HPS_v2.1_compressed"
HEADS = 16
"""Attention heads of both encoders of ViT-H/14, which cannot be read off the weights."""


def load(path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean") -> HpsV2:
    """Load the critic from a folder or hub id with `HPS_v2.1_compressed.pt` or `.safetensors`.

    The tokenizer is the folder's, or that of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`, which equals open_clip's.

    Raises:
        ValueError: the file is missing or broken.
    """
    name = HpsV2.name
    folder = find_checkpoint(name, path or SOURCE, f"{FILE}.*")
    file = folder / f"{FILE}.safetensors"
    file = file if file.is_file() else folder / f"{FILE}.pt"
    if not file.is_file():
        raise ValueError(f"critic {name}: there is no {FILE}.pt in {folder}; give a folder with that file of {SOURCE}")
    published = dict(read_tensors(name, file))  # memory-mapped, not read yet
    if missing := [key for key in TENSOR_NAMES if key not in published]:
        raise ValueError(f"critic {name}: {file} is no open_clip state dict: it lacks {', '.join(missing[:3])}")
    network: Any = empty_network(name, lambda: CLIPModel(config_of(published)))
    load_weights(name, network, to_transformers_names(published), device=device)
    return HpsV2(network.to(device), read_tokenizer(name, folder, CLIP_H), frames, aggregate)


class HpsV2(ClipCritic):
    """A `Reward` in [-1, 1]; generated videos mostly score 0.2 to 0.35."""

    name = "hpsv2"
    dimensions = ("preference",)
    card = CriticCard(
        "HPSv2.1, arXiv 2306.09341; xswu/HPSv2",
        "Apache-2.0",
        {"preference": (0.2, 0.35)},
        resolution="the whole frame, longer side 224, black bars",
        memory=3.9,
    )

    def preprocess(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 side side"]:
        """Resize to the longer side and pad. As in the original, bicubic overshoot is neither clipped nor rounded."""
        height, width = frames.shape[-2:]
        scale = self.side / max(height, width)
        inside = round(height * scale), round(width * scale)
        small = (
            F.interpolate(to_pixels(frames), inside, mode="bicubic", antialias=True)
            if scale != 1
            else to_pixels(frames)
        )
        down, across = (self.side - length for length in inside)
        bars = across // 2, across - across // 2, down // 2, down - down // 2
        return normalise(F.pad(small, bars))

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        return self.cosine(frames, [clean_text(prompt) for prompt in prompts])


def clean_text(text: str) -> str:
    """Clean a prompt like open_clip: fix the encoding, unescape HTML entities twice."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def config_of(published: Mapping[str, Tensor]) -> CLIPConfig:
    """The CLIP configuration of an open_clip state dict, from its tensor shapes."""
    patch, words = published["visual.conv1.weight"], published["token_embedding.weight"]
    places, positions = published["visual.positional_embedding"], published["positional_embedding"]

    def half(prefix: str) -> dict[str, int | str]:
        blocks = {name.split(".resblocks.")[1].split(".")[0] for name in published if name.startswith(prefix)}
        inner, width = published[f"{prefix}0.mlp.c_fc.weight"].shape
        size = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(blocks)}
        return {**size, "num_attention_heads": HEADS, "hidden_act": "gelu"}

    return CLIPConfig(
        text_config={
            **half("transformer.resblocks."),
            "vocab_size": len(words),
            "max_position_embeddings": len(positions),
            "eos_token_id": 2,  # makes transformers pool at the highest id, as open_clip does
        },
        vision_config={
            **half("visual.transformer.resblocks."),
            "patch_size": patch.shape[-1],
            "image_size": patch.shape[-1] * round((len(places) - 1) ** 0.5),
        },
        projection_dim=published["text_projection"].shape[1],
    )


def to_transformers_names(published: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Convert an open_clip state dict to transformers' names; unknown names are kept."""
    for name, tensor in published.items():
        if name in TENSOR_NAMES:
            yield TENSOR_NAMES[name], tensor.T if name in TRANSPOSED else tensor
        elif ".resblocks." in name:
            half, rest = name.split("transformer.resblocks.")
            layer, part = rest.split(".", 1)
            into = f"{'vision' if half else 'text'}_model.encoder.layers.{layer}."
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for which, third in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{into}self_attn.{which}_proj.{kind}", third
            else:
                module, kind = part.rsplit(".", 1)
                yield f"{into}{MODULE_NAMES.get(module, module)}.{kind}", tensor
        else:
            yield name, tensor


MODULE_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TENSOR_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
TRANSPOSED = ("text_projection", "visual.proj")
