"""Score cache on disk, keyed by what was scored: scoring the same video again costs a lookup instead of a critic.

Each score is one small file, written atomically, so that processes on several machines can use one folder: a reader
sees a complete score or none. When the folder is full, the least recently used scores are removed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import sys
import tempfile
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from besttake import __version__
from besttake.data.cache import versions
from besttake.data.disk_space import BLOCK, DiskSpace
from besttake.data.files import atomic, content_hash, quick_hash
from besttake.data.video import to_uint8
from besttake.models.policy import checksum, weights_hash
from besttake.rewards.checks import score_checked
from besttake.rewards.partial import PartialScore, scored_mask
from besttake.types import FPS, Reward, Score, Video

LIMIT = 256_000_000
"""Default limit in bytes on disk (whole blocks): more than 60,000 scores."""

REPR_TYPES = (str, int, float, list, tuple, dict, Path)
"""Types of settings whose `repr` describes them completely."""


class CachedReward:
    """A critic with a score cache. Videos that are equal in uint8, with the same prompt and frame rate, get one score.

    The key is a hash of the uint8 frames, the prompt, the frame rate, the critic's name, dimensions and identity (see
    `identity`), and the library versions. A critic whose scores depend on anything else must not be cached.
    Abstentions are not cached. Videos that require a gradient are always scored, since a cached number has none.

    Attributes:
        hits, misses: number of videos found and not found in the cache so far.
    """

    def __init__(self, reward: Reward, folder: str | Path, limit: int = LIMIT, critic_identity: str | None = None):
        """
        Args:
            limit: bytes that the folder may occupy, for all critics together.
            critic_identity: used instead of `identity(reward)`.

        Raises:
            ValueError: the folder cannot be written to, or the limit is too small for one score.
        """
        if limit < BLOCK:
            raise ValueError(
                f"the limit of the score cache is {limit} bytes; one score needs {BLOCK}: raise cache_limit"
            )
        self.reward, self.folder = reward, Path(folder)
        self.name, self.dimensions, self.card = reward.name, tuple(reward.dimensions), reward.card
        self.differentiable = reward.differentiable
        self.hits = self.misses = 0
        self._key_prefix = json.dumps([self.name, self.dimensions, critic_identity or identity(reward), versions()])
        self._disk = DiskSpace(self.folder, limit, ".json")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(f"the score cache {folder} cannot be written to ({error}); give another folder") from error

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """Like the critic's own `__call__`."""
        if videos.requires_grad:
            return self.reward(videos, prompts, fps)
        paths = [self._path(video, prompt, fps) for video, prompt in zip(videos, prompts, strict=True)]
        rows = [self._read(path) for path in paths]
        new = [i for i, row in enumerate(rows) if row is None]
        self.hits, self.misses = self.hits + len(rows) - len(new), self.misses + len(new)
        scored = torch.ones(len(rows), dtype=torch.bool)
        if new:
            score = score_checked(self.reward, videos[new], [prompts[i] for i in new], fps, abstentions=True)
            scored[new] = scored_mask(score).cpu()
            for i, row in zip(new, score.values.detach().tolist(), strict=True):
                rows[i] = row
                if scored[i]:
                    self._write(paths[i], row)
        values = torch.tensor(rows, dtype=torch.float32, device=videos.device).view(len(rows), len(self.dimensions))
        if scored.all():
            return Score(values, self.dimensions)
        return PartialScore(values, self.dimensions, scored.to(videos.device))

    def metrics(self) -> dict[str, float]:
        """The critic's own metrics, and the cache's hits and misses, by log name."""
        counts = {f"{self.name}/hits": float(self.hits), f"{self.name}/misses": float(self.misses)}
        return {**getattr(self.reward, "metrics", dict)(), **counts}

    def _path(self, video: Tensor, prompt: str, fps: float) -> Path:
        frames = to_uint8(video.detach()).cpu().contiguous()
        described = json.dumps([self._key_prefix, str(prompt), float(fps), list(frames.shape)])
        key = hashlib.sha256(described.encode() + frames.numpy().tobytes()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def _read(self, path: Path) -> list[float] | None:
        """A cached score, marked as recently used; None if there is none or the file is incomplete."""
        try:
            row = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        self._disk.mark_used(path)
        complete = isinstance(row, list) and len(row) == len(self.dimensions)
        return row if complete and all(isinstance(x, float) and math.isfinite(x) for x in row) else None

    def _write(self, path: Path, row: list[float]) -> None:
        self._disk.reserve(BLOCK)
        with atomic(path) as part:
            part.write_text(json.dumps(row))


def identity(reward: Reward) -> str:
    """A string that identifies a critic: its code and version, its weights, and the settings that affect scores.

    The settings are the critic's own `identity` attribute; without one, the arguments of its `__init__` that it stores.
    """
    own = getattr(reward, "identity", None)
    described = [
        weights_of(reward),
        _settings(reward) if own is None else own,
        _source_hashes(type(reward)),
        __version__,
    ]
    return json.dumps(described, sort_keys=True)


def weights_of(reward: Reward) -> dict[str, Any]:
    """Hashes of each network, tensor and vocabulary of a critic, by attribute name."""
    parts = {"": reward, **vars(reward)}
    return {name: described for name, part in parts.items() if (described := _weights(part))}


def _weights(part: Any) -> Any:
    if isinstance(part, nn.Module):
        return weights_hash(part)
    if isinstance(part, Tensor):
        return checksum(part)
    if hasattr(part, "get_vocab"):
        return hashlib.sha256(json.dumps(part.get_vocab(), sort_keys=True).encode()).hexdigest()
    if isinstance(part, dict):
        return {str(key): described for key, value in part.items() if (described := _weights(value))}
    return [described for value in part if (described := _weights(value))] if isinstance(part, (list, tuple)) else None


def _settings(reward: Reward) -> dict[str, str]:
    """The stored constructor arguments of a critic except the device; files by their content."""
    parameters = inspect.signature(type(reward).__init__).parameters.keys() - {"self", "device"}
    return {name: _setting(value) for name, value in vars(reward).items() if name in parameters}


def _setting(value: Any) -> str:
    if isinstance(value, (str, Path)) and value and Path(value).exists():
        return content_hash(value) if Path(value).is_file() else quick_hash(value)
    plain = value is None or isinstance(value, REPR_TYPES) or is_dataclass(value)
    return repr(value) if plain else ""  # other objects' `repr` may be only an address


def _source_hashes(kind: type) -> list[str]:
    """Hashes of the source files of a class and its base classes."""
    modules = {sys.modules.get(base.__module__) for base in kind.__mro__ if base.__module__ != "builtins"}
    files = {file for module in modules if (file := getattr(module, "__file__", None)) and Path(file).is_file()}
    return sorted(map(content_hash, files))
