"""A tiny random ViCLIP in the layout of OpenGVLab/ViCLIP-L-14-hf: `model.safetensors`, and the vocabulary as merges."""

import gzip
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from besttake.rewards.critics.viclip import MERGES, ViCLIPNetwork, ViCLIPSizes

PAIRS = ("r e", "re d</w>", "b a", "l l</w>", "ba ll</w>")
SIZES = ViCLIPSizes(
    side=32,
    patch=8,
    width=64,
    layers=2,
    words=16,
    vocabulary=512 + len(PAIRS) + 2,
    text_width=64,
    text_layers=2,
    embedding_width=32,
)


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_state(), folder / "model.safetensors")
    config = {"architectures": ["ViCLIP"], "size": "l", "tokenizer_path": f"./{MERGES}"}
    (folder / "config.json").write_text(json.dumps(config))
    write_merges(folder)


def write_merges(folder: Path) -> None:
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *PAIRS, ""]
    (folder / MERGES).write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))


def random_state() -> dict[str, torch.Tensor]:
    """Every parameter random, also those that start at zero; with the temperature, which is published but not used."""
    generator = torch.Generator().manual_seed(0)
    state = {"temp": torch.tensor(0.01)}
    for name, value in ViCLIPNetwork(SIZES).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        state[name] = 1 + 0.1 * noise if "ln_" in name and name.endswith("weight") else noise * 0.15
    return state
