"""Shared code of the two embedded critic networks: weight files, and prompts as word ids."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from besttake.data.files import save_tensors
from besttake.types import Video

EMBEDDED_WEIGHTS = Path(__file__).parent.parent / "world" / "weights"
"""A data folder of the package; the module `world`, which trains the critics, imports this one."""

UNKNOWN = 1
"""Id of words unknown from training; 0 is padding."""


def word_ids(prompts: Sequence[str], words: Sequence[str], length: int) -> Tensor:
    """Prompts as word ids (b, length), truncated or padded with 0; case and punctuation are ignored."""
    known = {word: i + 2 for i, word in enumerate(words)}
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_of_prompt = [known.get(word, UNKNOWN) for word in re.findall(r"[a-z0-9]+", prompt.lower())][:length]
        ids[row, : len(ids_of_prompt)] = torch.tensor(ids_of_prompt, dtype=torch.long)
    return ids


def check_videos(name: str, videos: Video, prompts: Sequence[str], least_frames: int = 2) -> None:
    """
    Raises:
        ValueError: `videos` is not a float `b f c h w` tensor with three channels, is too short, or the prompts do
            not match it.
    """
    shape = tuple(videos.shape)
    if videos.dim() != 5 or shape[2] != 3 or not videos.is_floating_point():
        raise ValueError(f"critic {name}: videos are {videos.dtype} {shape}, expected float (b, f, 3, h, w) in [-1, 1]")
    if len(prompts) != shape[0]:
        raise ValueError(f"critic {name}: {shape[0]} videos but {len(prompts)} prompts; give one prompt for each video")
    if shape[1] < least_frames:
        raise ValueError(
            f"critic {name}: videos have {shape[1]} frames, expected {least_frames} or more; the first prompt is "
            f"{prompts[0]!r}"
        )


def write_critic(folder: Path, module: nn.Module, config: dict) -> None:
    """Write a critic: weights as float16 safetensors, and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.half() if value.is_floating_point() else value for key, value in module.state_dict().items()}
    save_tensors(folder / "model.safetensors", {key: value.contiguous() for key, value in state.items()})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def read_config(folder: Path, critic: str) -> dict:
    """
    Raises:
        ValueError: the config is missing, unreadable, or of another critic.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no critic in {folder}: expected config.json and model.safetensors there")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("critic") != critic:
        ids_of_prompt = config.get("critic") if isinstance(config, dict) else None
        raise ValueError(f"{path} is of critic {ids_of_prompt!r}, expected {critic!r}")
    return config


def read_weights(folder: Path, module: nn.Module) -> None:
    """Load the weights in `folder` into `module`.

    Raises:
        ValueError: the weights are missing, truncated, or of another network.
    """
    path = folder / "model.safetensors"
    try:
        state = {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
        module.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights in {path} cannot be loaded: {error}") from error
