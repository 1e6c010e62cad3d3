"""Shared code of the critics based on vision-language models: files, precision, prompts and padding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from besttake.rewards.networks.image_critic import build_from_files
from besttake.rewards.networks.weights import find_checkpoint

TEXT_FILES = ("*.json", "*.txt", "*.model")
"""Patterns of configuration and tokenizer files."""

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def find_folder(critic: str, file: str, folders: list[Path], base: str | Path) -> Path:
    """The first of `folders` that has the file `file`; if none has, the folder of the base model.

    Args:
        base: folder or hub id of the base model.
    """
    own = next((folder for folder in folders if (folder / file).is_file()), None)
    return own or find_checkpoint(critic, base, *TEXT_FILES)


def read_tokenizer(critic: str, folder: Path) -> Any:
    """Load a folder's tokenizer as its `tokenizer.json` defines it; ValueError if it is missing or broken.

    transformers 5 rebuilds Llama tokenizers from their vocabulary and then splits text next to special tokens
    differently than when these critics were trained, so the file is used unchanged.
    """
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    return build_from_files(critic, lambda: kind.from_pretrained(folder), f"the tokenizer in {folder} cannot be read")


def dtype_of(critic: str, config: Mapping[str, Any]) -> torch.dtype:
    """The dtype in the network's configuration (bfloat16 for the published critics); default: float32."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in PRECISIONS:
        raise ValueError(f"critic {critic}: its configuration has dtype {name!r}, expected {' or '.join(PRECISIONS)}")
    return PRECISIONS[name]


def check_prompts(critic: str, prompts: list[str], tokenizer: Any) -> None:
    """ValueError if a prompt contains one of the tokenizer's special tokens, such as "<image>"."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for prompt in prompts:
        for token in special:
            if token in prompt:
                raise ValueError(f"critic {critic}: {token!r} in the prompt {prompt!r} is a special token; remove it")


def last_token_index(ids: Int[Tensor, "b n"], pad: int | None) -> Int[Tensor, "b"]:
    """Index of the last token before the padding."""
    if pad is None:
        return torch.full_like(ids[:, 0], ids.shape[1] - 1)
    return ((ids == pad).int().argmax(1) - 1) % ids.shape[1]
