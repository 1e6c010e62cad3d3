"""A CLIP of sixteen heads under open_clip's names, in a pickle; the tokenizer is here since tests have no hub."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from besttake.rewards.critics.hpsv2 import FILE, HEADS, MODULE_NAMES, TENSOR_NAMES, TRANSPOSED
from tests.tiny_critics.clip_parts import clip, write_tokenizer


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "state_dict": open_clip_names(clip(heads=HEADS).state_dict())}, folder / f"{FILE}.pt")
    write_tokenizer(folder)


def open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIP as open_clip names it, queries, keys and values joined."""
    whole = {then: old for old, then in TENSOR_NAMES.items()}
    parts = {then: old for old, then in MODULE_NAMES.items()}
    result = {}
    for name, tensor in state.items():
        if name in whole:
            result[whole[name]] = tensor.T.contiguous() if whole[name] in TRANSPOSED else tensor
            continue
        half, rest = name.split("_model.encoder.layers.")
        layer, part = rest.split(".", 1)
        into = f"{'visual.' if half == 'vision' else ''}transformer.resblocks.{layer}."
        module, kind = part.rsplit(".", 1)
        if module in parts:
            result[f"{into}{parts[module]}.{kind}"] = tensor
        elif module == "self_attn.q_proj":
            three = [state[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            result[f"{into}attn.in_proj_{kind}"] = torch.cat(three)
    return result
