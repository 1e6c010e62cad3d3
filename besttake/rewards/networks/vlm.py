"""What the critics built on vision-language models share: their files, precision, pictures, and how they read text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from besttake.rewards.networks.image_critic import build
from besttake.rewards.networks.weights import checkpoint

TEXT_FILES = ("*.json", "*.txt", "*.model")
"""Configurations and tokenizers, of whatever kind."""

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def first_with(critic: str, file: str, folders: list[Path], otherwise: str | Path) -> Path:
    """The first of the folders that has a file; if none does, that of the model that the critic was trained from.

    Args:
        otherwise: folder or hub id of that model.
    """
    own = next((folder for folder in folders if (folder / file).is_file()), None)
    return own or checkpoint(critic, otherwise, *TEXT_FILES)


def read_tokenizer(critic: str, folder: Path) -> Any:
    """The tokenizer of a folder, as its `tokenizer.json` says; ValueError if there is none or it is broken.

    transformers 5 builds a Llama tokenizer anew from its vocabulary, and then cuts text beside special tokens in
    another way than it did when these critics were trained; so the file is read as it is.
    """
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    return build(critic, lambda: kind.from_pretrained(folder), f"the tokenizer in {folder} cannot be read")


def precision(critic: str, config: Mapping[str, Any]) -> torch.dtype:
    """What the network computes in: as its configuration says, bfloat16 for the published ones, or float32."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in PRECISIONS:
        raise ValueError(f"critic {critic}: its configuration has dtype {name!r}, expected {' or '.join(PRECISIONS)}")
    return PRECISIONS[name]


def check_prompts(critic: str, prompts: list[str], tokenizer: Any) -> None:
    """ValueError if a prompt holds one of the tokens that tell the critic where to look, such as "<image>"."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for prompt in prompts:
        for token in special:
            if token in prompt:
                raise ValueError(f"critic {critic}: {token!r} in the prompt {prompt!r} means something else to it")


def before_padding(ids: Int[Tensor, "b n"], pad: int | None) -> Int[Tensor, "b"]:
    """The place just before the first pad token; the last place of a text that has none."""
    if pad is None:
        return torch.full_like(ids[:, 0], ids.shape[1] - 1)
    return ((ids == pad).int().argmax(1) - 1) % ids.shape[1]
