"""Scores on disk, keyed on what was scored: a take that comes again costs a look-up instead of a critic.

One small file for each score, written beside its place and then moved there, so that any number of processes on any
number of machines may share a folder: a reader sees a whole score or none. The scores used longest ago go first.
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
from besttake.data.files import atomic, content_hash, quick_hash
from besttake.data.room import BLOCK, DiskSpace
from besttake.data.video import to_uint8
from besttake.models.policy import checksum, weights_hash
from besttake.rewards.checks import score_checked
from besttake.rewards.partial import PartialScore, scored_mask
from besttake.types import FPS, Reward, Score, Video

LIMIT = 256_000_000
"""Bytes of disk, as the files' blocks count: more than 60,000 scores."""

PLAIN = (str, int, float, list, tuple, dict, Path)
"""Kinds of settings that `repr` tells."""


class CachedReward:
    """A critic that remembers. The same videos to the grey level, prompt and frame rate: the same score.

    A score is kept under a hash of the frames as a file would hold them (uint8), the prompt, the frame rate, the
    critic's name, dimensions and identity (see `identity`), and the versions of what computes; a critic that looks at
    more must not be cached. Abstentions are asked again. A video that wants a gradient is scored anew: a number from
    disk has none.

    Attributes:
        hits, misses: videos found and not found so far.
    """

    def __init__(self, reward: Reward, folder: str | Path, limit: int = LIMIT, who: str | None = None):
        """
        Args:
            limit: bytes of disk that the folder may take, all critics together.
            who: the critic's identity, where `identity` cannot tell it.

        Raises:
            ValueError: the folder cannot be written to, or the limit is no room for a score.
        """
        if limit < BLOCK:
            raise ValueError(f"the limit of the score cache is {limit} bytes; a score takes {BLOCK}")
        self.reward, self.folder = reward, Path(folder)
        self.name, self.dimensions, self.card = reward.name, tuple(reward.dimensions), reward.card
        self.differentiable = reward.differentiable
        self.hits = self.misses = 0
        self._head = json.dumps([self.name, self.dimensions, who or identity(reward), versions()])
        self._room = DiskSpace(self.folder, limit, ".json")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(f"the score cache {folder} cannot be written to ({error}); give another folder") from error

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """As the critic's own."""
        if videos.requires_grad:
            return self.reward(videos, prompts, fps)
        paths = [self._path(video, prompt, fps) for video, prompt in zip(videos, prompts, strict=True)]
        rows = [self._read(path) for path in paths]
        new = [i for i, row in enumerate(rows) if row is None]
        self.hits, self.misses = self.hits + len(rows) - len(new), self.misses + len(new)
        there = torch.ones(len(rows), dtype=torch.bool)
        if new:
            score = score_checked(self.reward, videos[new], [prompts[i] for i in new], fps, abstentions=True)
            there[new] = scored_mask(score).cpu()
            for i, row in zip(new, score.values.detach().tolist(), strict=True):
                rows[i] = row
                if there[i]:
                    self._write(paths[i], row)
        values = torch.tensor(rows, dtype=torch.float32, device=videos.device).view(len(rows), len(self.dimensions))
        if there.all():
            return Score(values, self.dimensions)
        return PartialScore(values, self.dimensions, there.to(videos.device))

    def metrics(self) -> dict[str, float]:
        """What the critic counts, and hits and misses, by names to log them under."""
        counts = {f"{self.name}/hits": float(self.hits), f"{self.name}/misses": float(self.misses)}
        return {**getattr(self.reward, "metrics", dict)(), **counts}

    def _path(self, video: Tensor, prompt: str, fps: float) -> Path:
        frames = to_uint8(video.detach()).cpu().contiguous()
        told = json.dumps([self._head, str(prompt), float(fps), list(frames.shape)])
        key = hashlib.sha256(told.encode() + frames.numpy().tobytes()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def _read(self, path: Path) -> list[float] | None:
        """A score, and a note that it was used; None where there is none, or a power cut left a part of one."""
        try:
            row = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        self._room.used(path)
        whole = isinstance(row, list) and len(row) == len(self.dimensions)
        return row if whole and all(isinstance(x, float) and math.isfinite(x) for x in row) else None

    def _write(self, path: Path, row: list[float]) -> None:
        self._room.make(BLOCK)
        with atomic(path) as part:
            part.write_text(json.dumps(row))


def identity(reward: Reward) -> str:
    """What tells a critic from another of its name: its code and version, its weights, and what else decides a score.

    That is told by the critic's own `identity`; where it has none, by what its `__init__` was given and it has kept.
    """
    own = getattr(reward, "identity", None)
    told = [weights_of(reward), _settings(reward) if own is None else own, _code(type(reward)), __version__]
    return json.dumps(told, sort_keys=True)


def weights_of(reward: Reward) -> dict[str, Any]:
    """A hash of each network, tensor and vocabulary that a critic holds."""
    parts = {"": reward, **vars(reward)}
    return {name: told for name, part in parts.items() if (told := _weights(part))}


def _weights(part: Any) -> Any:
    if isinstance(part, nn.Module):
        return weights_hash(part)
    if isinstance(part, Tensor):
        return checksum(part)
    if hasattr(part, "get_vocab"):
        return hashlib.sha256(json.dumps(part.get_vocab(), sort_keys=True).encode()).hexdigest()
    if isinstance(part, dict):
        return {str(key): told for key, value in part.items() if (told := _weights(value))}
    return [told for value in part if (told := _weights(value))] if isinstance(part, (list, tuple)) else None


def _settings(reward: Reward) -> dict[str, str]:
    """What a critic was made with, of files their content; the device is none of it."""
    given = inspect.signature(type(reward).__init__).parameters.keys() - {"self", "device"}
    return {name: _setting(value) for name, value in vars(reward).items() if name in given}


def _setting(value: Any) -> str:
    if isinstance(value, (str, Path)) and value and Path(value).exists():
        return content_hash(value) if Path(value).is_file() else quick_hash(value)
    plain = value is None or isinstance(value, PLAIN) or is_dataclass(value)
    return repr(value) if plain else ""  # of other things `repr` may give no more than an address


def _code(kind: type) -> list[str]:
    """Hashes of the files in which a class and what it inherits are written."""
    modules = {sys.modules.get(base.__module__) for base in kind.__mro__ if base.__module__ != "builtins"}
    files = {file for module in modules if (file := getattr(module, "__file__", None)) and Path(file).is_file()}
    return sorted(map(content_hash, files))
