"""Scores on disk, keyed on what was scored: a take that comes again costs a look-up instead of a critic.

One small file for each score, written beside its place and then moved there, so that any number of processes on any
number of machines may share a folder: a reader sees a whole score or none. The scores used longest ago go first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from besttake import __version__
from besttake.data.video import to_uint8
from besttake.policy import signature
from besttake.rewards.checks import checked
from besttake.rewards.partial import PartialScore, given
from besttake.types import FPS, Reward, Score, Video

LIMIT = 256_000_000
"""Bytes of disk, as the files' blocks count: more than 60,000 scores."""

KEEP = 0.9
"""The share of the limit that is left when old scores are thrown out, so that it is seldom done."""

BLOCK = 4096
"""Bytes that a small file takes."""


class CachedReward:
    """A critic that remembers. The same videos to the grey level, prompt and frame rate: the same score.

    A score is kept under a hash of the frames as a file would hold them (uint8), the prompt, the frame rate, and the
    critic's name, dimensions and identity (see `identity`); a critic that looks at more must not be cached. Abstentions
    are asked again. A video that wants a gradient is scored anew: a number from disk has none.

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
        self.reward, self.folder, self.limit = reward, Path(folder), limit
        self.name, self.dimensions, self.card = reward.name, tuple(reward.dimensions), reward.card
        self.differentiable = reward.differentiable
        self.hits = self.misses = 0
        self._head = json.dumps([self.name, self.dimensions, who or identity(reward)])
        self._room = 0  # scores that may be written before the folder is weighed again
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
            score = checked(self.reward, videos[new], [prompts[i] for i in new], fps, abstentions=True)
            there[new] = given(score).cpu()
            for i, row in zip(new, score.values.detach().tolist(), strict=True):
                rows[i] = row
                if there[i]:
                    self._write(paths[i], row)
        values = torch.tensor(rows, dtype=torch.float32, device=videos.device).view(len(rows), len(self.dimensions))
        if there.all():
            return Score(values, self.dimensions)
        return PartialScore(values, self.dimensions, there.to(videos.device))

    def watched(self) -> dict[str, float]:
        """What the critic counts, and hits and misses, by names to log them under."""
        counts = {f"{self.name}/hits": float(self.hits), f"{self.name}/misses": float(self.misses)}
        return {**getattr(self.reward, "watched", dict)(), **counts}

    def _path(self, video: Tensor, prompt: str, fps: float) -> Path:
        frames = to_uint8(video.detach()).cpu().contiguous()
        told = json.dumps([self._head, str(prompt), float(fps), list(frames.shape)])
        key = hashlib.sha256(told.encode() + frames.numpy().tobytes()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def _read(self, path: Path) -> list[float] | None:
        """A score, and a note that it was used; None where there is none, or a power cut left a part of one."""
        try:
            row = json.loads(path.read_text())
            os.utime(path)
        except (OSError, ValueError):
            return None
        whole = isinstance(row, list) and len(row) == len(self.dimensions)
        return row if whole and all(isinstance(x, float) and math.isfinite(x) for x in row) else None

    def _write(self, path: Path, row: list[float]) -> None:
        if self._room <= 0:
            self._make_room()
        self._room -= 1
        path.parent.mkdir(exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(row, file)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise

    def _make_room(self) -> None:
        """Throw out the scores used longest ago; another process may be doing the same, or writing one just now."""
        found = []
        for path in self.folder.glob("??/*.json"):
            try:
                found.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:
                continue
        most = self.limit // BLOCK
        if len(found) >= most:
            for _, path in sorted(found)[: len(found) - int(KEEP * most)]:
                path.unlink(missing_ok=True)
            found = found[: int(KEEP * most)]
        self._room = max(1, (most - len(found)) // 2)  # others may be writing as well


def identity(reward: Reward) -> str:
    """What tells a critic from another of its name: its own `identity`, its networks' weights, and our version."""
    parts = {"": reward, **vars(reward)}
    networks = {name: signature(part) for name, part in parts.items() if isinstance(part, nn.Module)}
    return json.dumps([getattr(reward, "identity", ""), networks, __version__], sort_keys=True)
