"""Loading of published critics from a folder or the hub: safetensors, or pickles without running their code.

Pickles are restricted to tensors (torch's `weights_only`); every other class that a pickled module names is replaced by
`EmptyObject`.
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

READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    TypeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""Exceptions raised when reading a broken file."""


def find_checkpoint(critic: str, source: str | Path, *patterns: str) -> Path:
    """The local folder of a critic's files, downloaded to the hub's cache if `source` is a hub id.

    Args:
        patterns: the files to download, such as "*.safetensors".

    Raises:
        ValueError: there is no such folder, and no such hub id can be reached.
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
    """Read a critic's JSON file; ValueError if it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"critic {critic}: {path} cannot be read: {error}") from error


def read_tensors(critic: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a weights file, or of every shard in a folder; pickles may contain only tensors.

    Raises:
        ValueError: there are no weights, or a file is damaged or contains other objects.
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
        except READ_ERRORS as error:
            raise ValueError(f"critic {critic}: {file} is damaged, or no file of tensors: {error}") from error
        yield from tensors.items()


def read_module(critic: str, path: Path) -> dict[str, Tensor]:
    """The state dict of a pickled module, read without its classes and without running its code.

    Raises:
        ValueError: the file is damaged, not in torch's zip format (since 1.6), or no module.
    """
    try:
        unsafe_names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(EmptyObject, name) for name in unsafe_names]):
            module = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return dict(_tensors_in(module))
    except (*READ_ERRORS, AttributeError) as error:
        raise ValueError(f"critic {critic}: {path} is damaged, or no pickled module: {error}") from error


class EmptyObject:
    """Replaces any class of a pickle: accepts any arguments; the pickle sets its attributes."""

    def __init__(self, *_: Any):
        pass


def _tensors_in(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module, named as in `nn.Module.state_dict`."""
    attributes = vars(module)
    for name, tensor in {**attributes["_parameters"], **attributes["_buffers"]}.items():
        if tensor is not None and name not in attributes.get("_non_persistent_buffers_set", ()):
            yield prefix + name, tensor.detach()
    for name, part in attributes["_modules"].items():
        if part is not None:
            yield from _tensors_in(part, f"{prefix}{name}.")


def load_weights(
    critic: str,
    network: nn.Module,
    tensors: Iterator[tuple[str, Tensor]] | Mapping[str, Tensor],
    rename: Callable[[str], str | None] = lambda name: name,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Load published weights into a network (possibly on the meta device) and freeze it.

    Args:
        rename: maps a published name to the network's; None skips the weight.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape; the first few are named.
    """
    expected = network.state_dict()
    loaded: set[str] = set()
    faults: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": []}
    for published_name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        name = rename(published_name)
        if name is None:
            continue
        if name not in expected:
            faults["unexpected"].append(published_name)
        elif expected[name].shape != tensor.shape:
            faults["of another shape"].append(
                f"{published_name} ({tuple(tensor.shape)}, not {tuple(expected[name].shape)})"
            )
        else:
            tensor = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
            network.load_state_dict({name: tensor}, strict=False, assign=True)
        loaded.add(name)
    faults["missing"] = sorted(expected.keys() - loaded)
    for what, names in faults.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"critic {critic}: the weights are not those of its network: {what} {', '.join(names[:3])}{more}"
            )
    network.requires_grad_(False).eval()
