"""Tensor cache on disk, keyed by inputs: embeddings and latents, computed once for all runs.

Each entry is one file, written atomically, so that an interrupted run leaves only complete files and the next continues
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
from besttake.data.disk_space import DiskSpace
from besttake.data.files import save_tensors

log = logging.getLogger(__name__)

GB = 10**9


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that affect numerical results."""
    return {"besttake": __version__} | {name: version(name) for name in ("av", "diffusers", "torch", "transformers")}


class TensorCache:
    """A folder of named tensors. A key is any number of values whose `repr` identifies the inputs.

    `versions` is part of every key.
    """

    def __init__(self, folder: str | Path, limit: int = 50 * GB):
        """
        Args:
            limit: bytes that the folder may occupy.

        Raises:
            ValueError: the folder cannot be written to.
        """
        self.folder = Path(folder)
        self._disk = DiskSpace(self.folder, limit, ".safetensors")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(f"the cache {folder} cannot be written to ({error}); give another folder") from error

    def read(self, *key: object) -> dict[str, Tensor] | None:
        """The tensors under a key; None if there are none, or the file is damaged."""
        path = self._path(key)
        try:
            tensors = load(path.read_bytes())  # read at once: another process may delete it
            self._disk.mark_used(path)
            return tensors
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("%s is damaged (%s) and will be recomputed", path, error)
            return None

    def write(self, tensors: dict[str, Tensor], *key: object) -> None:
        """Store tensors under a key, unless they exceed the limit.

        Raises OSError if the disk is full; existing entries are unchanged.
        """
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if not self._disk.reserve(sum(tensor.nbytes for tensor in on_cpu.values()) + 1024):
            log.warning("these tensors exceed the limit of the cache %s and are not stored", self.folder)
            return
        try:
            save_tensors(self._path(key), on_cpu)
        except (OSError, SafetensorError) as error:
            raise OSError(f"the cache {self.folder} could not be written to: {error}") from error

    def _path(self, key: tuple[object, ...]) -> Path:
        name = hashlib.sha256(repr((versions(), key)).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"
