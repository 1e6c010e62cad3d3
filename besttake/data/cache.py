"""Tensors on disk, keyed on what they were made of: embeddings and latents, made once for all runs.

One file for each, written beside its place and then moved there: what a kill leaves is whole, and the next run goes on
from it; any number of processes may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from besttake.data.files import atomic

log = logging.getLogger(__name__)

LOOKS, LOOK = 64, 4096
"""How many places of a file of weights are looked at, and bytes of each."""


class TensorCache:
    """A folder of named tensors; a key is any number of values that tell, by their `repr`, what was made of what."""

    def __init__(self, folder: str | Path):
        """
        Raises:
            ValueError: the folder cannot be written to.
        """
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(f"the cache {folder} cannot be written to ({error}); give another folder") from error

    def read(self, *key: object) -> dict[str, Tensor] | None:
        """What was written under a key; None if nothing was, or it is damaged."""
        path = self._path(key)
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            log.warning("%s is damaged (%s): it is made again", path, error)
            return None

    def write(self, tensors: dict[str, Tensor], *key: object) -> None:
        """Keep tensors under a key. Raises OSError if the disk is full; what was there before is untouched."""
        try:
            with atomic(self._path(key)) as part:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
        except (OSError, SafetensorError) as error:
            raise OSError(f"the cache {self.folder} could not be written to: {error}") from error

    def _path(self, key: tuple[object, ...]) -> Path:
        name = hashlib.sha256(repr(key).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


def content(path: str | Path) -> str:
    """A hash of all of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def glimpse(folder: str | Path) -> str:
    """A hash of a folder of weights, without reading all of it: names and sizes of its files, and some of each."""
    found = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as file:
            for place in range(0, size, max(LOOK, size // LOOKS)):
                file.seek(place)
                found.update(file.read(LOOK))
    return found.hexdigest()
