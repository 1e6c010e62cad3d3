"""Reading and writing networks as the Open-Sora authors publish them: `config.json` beside `model.safetensors`.

Weights are read one tensor at a time, straight to the device and in the dtype asked for, so that no second copy of
the network is ever in memory.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from besttake.data.files import save_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class PublicCheckpoint:
    """Gives a network of diffusers' kind `from_pretrained` and `save_pretrained` in the public layout."""

    @classmethod
    def from_pretrained(cls, source: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
        """The network in a folder or on the hub, in one file or in shards with an index.

        Raises:
            ValueError: there is no such folder, a file of it is missing or cut short, or the weights are not all and
                only those of this network with this `config.json`.
        """
        network = cls.empty(source)
        places = places_of_weights(f"'{source}'", weight_files(local_folder(source)), network.state_dict())
        weights = {}
        for name, path in places.items():
            with opened(path, device) as file:  # anew: what was read of an open file stays in memory
                weights[name] = file.get_tensor(name).to(dtype, copy=True)
        network.load_state_dict(weights, assign=True)
        return network

    @classmethod
    def empty(cls, source: str | Path) -> Any:
        """The network as its `config.json` has it, with weights that take no memory (on the meta device)."""
        settings = inspect.signature(cls.__init__).parameters
        config = {name: value for name, value in read_config(source).items() if name in settings}
        try:
            with torch.device("meta"):
                return cls(**config).eval()  # type: ignore[attr-defined]
        except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
            raise ValueError(f"the {CONFIG} in '{source}' is not a {cls.__name__}'s: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `from_pretrained` reads, and what the authors' own code does."""
        network: Any = self
        held = {name: getattr(network, name).flatten().tolist() for name in network.ignore_for_config}
        kind = type(self).__name__
        config = {"_class_name": kind, "architectures": [kind], "model_type": kind, **public(network.config), **held}
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: weight.detach().contiguous() for name, weight in network.state_dict().items()}
        save_tensors(Path(folder) / WEIGHTS, weights, {"format": "pt"})


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network's settings without what diffusers notes beside them."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def local_folder(source: str | Path) -> Path:
    """The folder itself, or that of the hub's cache where the files now are; ValueError if there is neither."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=[CONFIG, "*.safetensors", f"{WEIGHTS}.index.json"]))
    except (OSError, ValueError) as error:
        raise ValueError(f"there is no folder '{source}', nor a hub id that can be reached: {error}") from error


def read_config(source: str | Path) -> dict[str, Any]:
    """The settings in the `config.json` of a folder or on the hub; ValueError if there are none."""
    path = local_folder(source) / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"'{source}' has no readable {CONFIG}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the {CONFIG} in '{source}' is a {type(config).__name__}, expected names with values")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; ValueError if one is missing."""
    index = folder / f"{WEIGHTS}.index.json"
    try:
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {WEIGHTS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: {error}; download it again") from error
    files = [folder / str(name) for name in sorted(names)]
    if missing := [path.name for path in files if not path.is_file()]:
        raise ValueError(f"there is no {', '.join(missing)} in '{folder}'; download it again")
    return files


def places_of_weights(source: str, files: list[Path], expected: Mapping[str, torch.Tensor]) -> dict[str, Path]:
    """The file of each tensor; ValueError unless they have the names and shapes expected. Only heads are read."""
    places: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                places[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())
    wrong = [
        f"{name} is {shapes[name]} and not {tuple(weight.shape)}"
        for name, weight in expected.items()
        if name in shapes and shapes[name] != tuple(weight.shape)
    ]
    faults = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "mis-shaped": wrong,
    }
    for what, names in faults.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"the weights in {source} are not what its {CONFIG} says: {what} {', '.join(names[:3])}{more}; "
                f"download it again, or mend its {CONFIG}"
            )
    return places


def check_whole(folder: Path) -> None:
    """ValueError if a safetensors file in this folder is cut short."""
    for path in sorted(folder.glob("*.safetensors")):
        with opened(path):
            pass


@contextmanager
def opened(path: Path, device: str = "cpu") -> Iterator[Any]:
    """An open safetensors file; ValueError if it is damaged."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from error
