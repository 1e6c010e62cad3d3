"""Tensors on disk, keyed on what they were made of: embeddings and latents, made once for all runs.

One file for each, written beside its place and then moved there: what a kill leaves is whole, and the next run goes on
from it; any number of processes may share a folder. What was used longest ago makes room.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from besttake import __version__
from besttake.data.files import save_tensors
from besttake.data.room import DiskSpace

log = logging.getLogger(__name__)

GB = 10**9


@cache
def versions() -> dict[str, str]:
    """The versions of what computes: with another of them the same input may give other numbers."""
    return {"besttake": __version__} | {name: version(name) for name in ("av", "diffusers", "torch", "transformers")}


class TensorCache:
    """A folder of named tensors; a key is any number of values that tell, by their `repr`, what was made of what.

    The `versions` are part of every key.
    """

    def __init__(self, folder: str | Path, limit: int = 50 * GB):
        """
        Args:
            limit: bytes of disk that the folder may take.

        Raises:
            ValueError: the folder cannot be written to.
        """
        self.folder = Path(folder)
        self._room = DiskSpace(self.folder, limit, ".safetensors")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(f"the cache {folder} cannot be written to ({error}); give another folder") from error

    def read(self, *key: object) -> dict[str, Tensor] | None:
        """What was written under a key; None if nothing was, or it is damaged."""
        path = self._path(key)
        try:
            found = load(path.read_bytes())  # at once: another process may be throwing it out
            self._room.used(path)
            return found
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("%s is damaged (%s): it is made again", path, error)
            return None

    def write(self, tensors: dict[str, Tensor], *key: object) -> None:
        """Keep tensors under a key, unless they alone would be too much.

        Raises OSError if the disk is full; what was there before is untouched.
        """
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if not self._room.make(sum(tensor.nbytes for tensor in kept.values()) + 1024):
            log.warning("the cache %s has no room for tensors as large as these: they are not kept", self.folder)
            return
        try:
            save_tensors(self._path(key), kept)
        except (OSError, SafetensorError) as error:
            raise OSError(f"the cache {self.folder} could not be written to: {error}") from error

    def _path(self, key: tuple[object, ...]) -> Path:
        name = hashlib.sha256(repr((versions(), key)).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"
