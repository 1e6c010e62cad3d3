"""Models at their real size with random weights, which do not affect times, and without their text encoders."""

from __future__ import annotations

from typing import Any

import torch

from besttake.models import VideoModel, load_model
from besttake.models.families.opensora import OpenSora
from besttake.plan.measured import randomise
from besttake.plan.skeletons import skeleton
from besttake.runtime.embedded import embedded_model
from besttake.types import Condition

PROMPT = "a woman opens a red umbrella in the rain and walks on"


def random_model(source: str, dtype: torch.dtype, device: str) -> VideoModel:
    """An embedded model, or one made from its configurations; prompts become random numbers."""
    if embedded_model(source) != source:
        return without_text_encoder(load_model(source, dtype, device))
    return without_text_encoder(skeleton(source, dtype, randomise, device=torch.device(device)))


def without_text_encoder(model: VideoModel) -> VideoModel:
    """The model with random text embeddings instead of its text encoder, which may have five billion weights."""

    def embed(prompts: list[str]) -> Condition:
        return random_text(model, prompts)

    model.pipeline.text_encoder = None
    vars(model).update(text_parts=(), embed=embed)
    if isinstance(model, OpenSora):  # its pipeline takes no embeddings
        model.pipeline.encode_prompt = lambda prompts: tuple(embed(prompts).values())
    return model


def random_text(model: VideoModel, prompts: list[str]) -> Condition:
    """Random numbers in the shape of a family's text embeddings: CogVideoX's, Wan's or Open-Sora's.

    Raises:
        ValueError: the model is of another family.
    """
    config: Any = model.pipeline.transformer.config
    width = next((config[name] for name in ("text_embed_dim", "text_dim", "caption_channels") if name in config), 0)
    if not width:
        raise ValueError(f"the text embeddings of {model.source} have an unknown shape; give them one in random_text")
    length = model.longest_prompt()
    dtype = model.pipeline.transformer.dtype
    text = {"text": 0.1 * torch.randn(len(prompts), length, width, device=model.device, dtype=dtype)}
    if isinstance(model, OpenSora):
        used = torch.tensor([[model.count_tokens(prompt)] for prompt in prompts])
        text["mask"] = (torch.arange(length) < used).long().to(model.device)
    return text
