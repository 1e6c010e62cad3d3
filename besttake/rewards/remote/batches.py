"""A batch of videos, split into requests that are distributed over several servers."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from besttake.rewards.remote.server import pack
from besttake.types import Video


@dataclass(eq=False)
class SubBatch:
    """The part of a batch in one request, whose id stays the same when it is sent again."""

    critic: str
    rows: slice
    videos: Video
    prompts: list[str]
    frames: list[int]
    fps: float
    """Frame rate of the chosen frames."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    tries: int = 0
    values: np.ndarray | None = None
    _body: list[Any] | None = None

    def body(self) -> list[Any]:
        """The body of the request.

        Raises:
            ValueError: a pixel is not finite.
        """
        if self._body is None:
            for video, prompt in zip(self.videos, self.prompts, strict=True):
                if not all(video[i].sum(dtype=torch.float32).isfinite() for i in self.frames):
                    raise ValueError(f"critic {self.critic}: the video of {prompt!r} has pixels that are not finite")
            self._body = pack(self.id, [as_uint8(video, self.frames) for video in self.videos], self.prompts, self.fps)
        return self._body


def as_uint8(video: Float[Tensor, "f 3 h w"], frames: Sequence[int]) -> np.ndarray:
    """Some frames of a video in [-1, 1] as uint8 (n, h, w, 3)."""
    chosen = [  # one by one, which fits into a CPU's cache: seven times faster than all at once
        video[i].float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).permute(1, 2, 0) for i in frames
    ]
    return torch.stack(chosen).contiguous().cpu().numpy()


class Batch:
    """The requests still to be answered and the servers still in use; thread-safe."""

    def __init__(self, parts: list[SubBatch], servers: int, tries: int):
        self.error: Exception | None = None
        self._waiting, self._unanswered = deque(parts), len(parts)
        self._servers, self._most_tries = servers, servers * tries
        self._fault: Exception | None = None
        self._changed = threading.Condition()

    def next(self) -> SubBatch | None:
        """The next part; waits while another server may put one back. None when the batch is complete or failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over())
            return None if self._over() else self._waiting.popleft()

    def answered(self) -> None:
        with self._changed:
            self._unanswered -= 1
            self._changed.notify_all()

    def put_back(self, part: SubBatch, fault: Exception | None = None) -> None:
        """Return a part for another try; the batch fails if it was tried too often."""
        with self._changed:
            self._waiting.appendleft(part)
            self._fault = fault
            if part.tries >= self._most_tries:
                self.error = self.error or fault
            self._changed.notify_all()

    def leave(self) -> None:
        """Give up one server; if it was the last, the batch fails."""
        with self._changed:
            self._servers -= 1
            if not self._servers:
                self.error = self.error or self._fault
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait, at most until the batch is complete or failed."""
        with self._changed:
            self._changed.wait_for(self._over, seconds)

    def _over(self) -> bool:
        return self.error is not None or not self._unanswered
