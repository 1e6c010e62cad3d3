"""What tiny models are made of: a text encoder, a tokenizer, and weights none of which is zero."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from besttake.world import build as world

TOKENS = 48
"""The longest prompt that tiny models read."""


@dataclass(frozen=True)
class Tiny:
    """A tiny random model.

    Attributes:
        build: its official pipeline, with random weights.
        call: arguments of the official pipeline's call, by guidance; beside prompt, latents, size, steps and output.
        size: frames, height and width that it is tested at.
        wrong: a size it cannot take, and the number that the error must name as the nearest it can.
        pack: from our latents `b c f h w` to what the official pipeline takes as `latents`, and back.
        first_frame: whether it must be given one.
        write: writes the checkpoint to a folder, where `save_pretrained` of the pipeline does not.
    """

    build: Callable[[], Any]
    size: tuple[int, int, int]
    wrong: tuple[tuple[int, int, int], int]
    call: Callable[[float], dict[str, Any]] = lambda guidance: {"guidance_scale": guidance}
    pack: Callable[[Any, Tensor], Tensor] = lambda pipeline, latents: latents
    unpack: Callable[[Any, Tensor, tuple[int, ...]], Tensor] = lambda pipeline, latents, shape: latents
    first_frame: bool = False
    write: Callable[[Path], None] | None = None


def tokenizer():
    tokenizer = world.tokenizer()
    tokenizer.model_max_length = TOKENS
    return tokenizer


def t5(width: int = 32) -> T5EncoderModel:
    return _encoder(T5Config, T5EncoderModel, width)


def umt5(width: int = 32) -> UMT5EncoderModel:
    return _encoder(UMT5Config, UMT5EncoderModel, width)


def _encoder(config_class, model_class, width):
    return model_class(
        config_class(
            vocab_size=len(tokenizer()),
            d_model=width,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


@torch.no_grad()
def without_zeros(module: nn.Module, scale: float = 0.05) -> nn.Module:
    """The module, each of its all-zero parameters replaced by small random numbers, so that none hides a fault."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(0, scale)
    return module.eval()
