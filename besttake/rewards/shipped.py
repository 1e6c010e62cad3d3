"""What the two critic networks of the small world share: where their weights lie, and how a prompt becomes numbers."""

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
"""A folder of the package, not a room: `world` trains the critics and stands above them."""

UNKNOWN = 1
"""The id of every word that was not in training; 0 is padding."""


def word_ids(prompts: Sequence[str], words: Sequence[str], length: int) -> Tensor:
    """Prompts as ids (b, length), cut or padded with 0; case and punctuation do not count."""
    known = {word: i + 2 for i, word in enumerate(words)}
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        found = [known.get(word, UNKNOWN) for word in re.findall(r"[a-z0-9]+", prompt.lower())][:length]
        ids[row, : len(found)] = torch.tensor(found, dtype=torch.long)
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
            f"critic {name}: videos have {shape[1]} frames, it needs {least_frames} or more; the first is that of "
            f"{prompts[0]!r}"
        )


def write_critic(folder: Path, module: nn.Module, config: dict) -> None:
    """Weights as float16 safetensors, and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.half() if value.is_floating_point() else value for key, value in module.state_dict().items()}
    save_tensors(folder / "model.safetensors", {key: value.contiguous() for key, value in state.items()})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def read_config(folder: Path, critic: str) -> dict:
    """
    Raises:
        ValueError: there is no readable config, or it belongs to another critic.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no critic in {folder}: expected config.json and model.safetensors there")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("critic") != critic:
        found = config.get("critic") if isinstance(config, dict) else None
        raise ValueError(f"{path} is of critic {found!r}, expected {critic!r}")
    return config


def read_weights(folder: Path, module: nn.Module) -> None:
    """Fill `module` with the weights in `folder`.

    Raises:
        ValueError: they are missing, truncated, or of another network.
    """
    path = folder / "model.safetensors"
    try:
        state = {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
        module.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights in {path} cannot be used: {error}") from error
