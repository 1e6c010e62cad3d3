"""Reading published critics of a folder or the hub, whole or not at all: safetensors, or pickles that run nothing.

A pickle says what is to be called to make its objects. Here that is only what makes tensors (torch's `weights_only`);
of a module that was pickled whole, everything else it names is an empty `Shell`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

FAULTS = (OSError, ValueError, KeyError, RuntimeError, TypeError, EOFError, SafetensorError, pickle.UnpicklingError)
"""What reading a broken file raises."""


def checkpoint(critic: str, source: str | Path, *patterns: str) -> Path:
    """The folder of a critic's files: itself, or that of the hub's cache, where they are downloaded to.

    Args:
        patterns: the files that are wanted of a hub id, such as "*.safetensors".

    Raises:
        ValueError: there is no such folder, and no hub id of that name that can be reached.
    """
    if Path(source).exists():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(patterns) or None))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"critic {critic}: there is no folder '{source}', nor a hub id that can be reached: {error}"
        ) from error


def read_json(critic: str, path: Path) -> dict[str, Any]:
    """A json file of a critic; ValueError if it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"critic {critic}: {path} cannot be read: {error}") from error


def read_tensors(critic: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file, or of every shard in a folder, a file at a time; pickles are held to tensors alone.

    Raises:
        ValueError: there are no weights, or a file is damaged or holds more than tensors.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"critic {critic}: there are no weights in {path} (*.safetensors, or pytorch_model*.bin)")
    for file in files:
        try:
            if file.suffix == ".safetensors":
                tensors = load_file(file)
            else:
                tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                tensors = tensors.get("state_dict", tensors)
        except FAULTS as error:
            raise ValueError(f"critic {critic}: {file} is damaged, or no file of tensors: {error}") from error
        yield from tensors.items()


def read_module(critic: str, path: Path) -> dict[str, Tensor]:
    """The state dict of a module that was pickled whole, without its classes, and without running anything of it.

    Raises:
        ValueError: the file is damaged, no zip file as torch writes them since 1.6, or of no module.
    """
    try:
        strangers = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(Shell, name) for name in strangers]):
            module = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return dict(_tensors_in(module))
    except (*FAULTS, AttributeError) as error:
        raise ValueError(f"critic {critic}: {path} is damaged, or no pickled module: {error}") from error


class Shell:
    """Stands for whatever a pickle names: takes any arguments and does nothing; the pickle gives it its attributes."""

    def __init__(self, *_: Any):
        pass


def _tensors_in(module: Any, stem: str = "") -> Iterator[tuple[str, Tensor]]:
    """As `nn.Module.state_dict` names them."""
    inside = vars(module)
    for name, tensor in {**inside["_parameters"], **inside["_buffers"]}.items():
        if tensor is not None and name not in inside.get("_non_persistent_buffers_set", ()):
            yield stem + name, tensor.detach()
    for name, part in inside["_modules"].items():
        if part is not None:
            yield from _tensors_in(part, f"{stem}{name}.")


def load_weights(
    critic: str,
    network: nn.Module,
    tensors: Iterator[tuple[str, Tensor]] | Mapping[str, Tensor],
    rename: Callable[[str], str | None] = lambda name: name,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Put published weights into a network, which may be empty (on the meta device), and freeze it.

    Args:
        rename: from a published name to the network's, None for what the network has no use for.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape: the first few are named.
    """
    expected = network.state_dict()
    found: set[str] = set()
    faults: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": []}
    for published, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        name = rename(published)
        if name is None:
            continue
        if name not in expected:
            faults["unexpected"].append(published)
        elif expected[name].shape != tensor.shape:
            faults["of another shape"].append(f"{published} ({tuple(tensor.shape)}, not {tuple(expected[name].shape)})")
        else:
            tensor = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
            network.load_state_dict({name: tensor}, strict=False, assign=True)
        found.add(name)
    faults["missing"] = sorted(expected.keys() - found)
    for what, names in faults.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"critic {critic}: the weights are not those of its network: {what} {', '.join(names[:3])}{more}"
            )
    network.requires_grad_(False).eval()
