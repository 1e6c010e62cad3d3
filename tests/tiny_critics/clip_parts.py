"""Tiny CLIPs in the layouts they are published in: transformers' folder, with the fields of years ago in its config."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.tiny.parts import without_zeros

MERGES = ("r e", "re d</w>", "b a", "l l</w>", "ba ll</w>", "b l", "bl u", "blu e</w>")
TOKENS = 16
"""The longest prompt they read."""


def clip(activation: str = "gelu", side: int = 28, heads: int = 2, vocabulary: int | None = None) -> CLIPModel:
    """A CLIP of patches of 14 pixels, none of whose weights is zero."""
    half = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "hidden_act": activation,
    }
    config = CLIPConfig(
        text_config={
            **half,
            "vocab_size": vocabulary or len(_vocabulary()),
            "max_position_embeddings": TOKENS,
            "bos_token_id": 0,
            "eos_token_id": 2,  # as in all older configs: transformers then reads the text at its highest id
        },
        vision_config={**half, "image_size": side, "patch_size": 14},
        projection_dim=24,
    )
    model = without_zeros(CLIPModel(config))
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start of a training, where all pictures look alike
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_clip(folder: Path, model: CLIPModel) -> None:
    """`config.json` and `model.safetensors`, with the position ids that older checkpoints hold."""
    write_config(folder, model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(state, folder / "model.safetensors")


def write_config(folder: Path, model: CLIPModel) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config |= {
        "text_config_dict": None,
        "vision_config_dict": None,
        "torch_dtype": "float32",
        "initializer_factor": 1.0,
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizer(folder: Path) -> None:
    """CLIP's byte pairs with a few merges: every text has ids, "red", "ball" and "blue" one each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**special, "model_max_length": TOKENS, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"})
    )


def _vocabulary() -> dict[str, int]:
    letters = list(bytes_to_unicode().values())
    tokens = letters + [f"{letter}</w>" for letter in letters] + [merge.replace(" ", "") for merge in MERGES]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
