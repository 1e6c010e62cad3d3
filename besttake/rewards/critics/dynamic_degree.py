"""Analytic critic: how much of the picture changes, light aside.

VBench asks of each clip, yes or no, whether the strongest 5 % of its optical flow pass a threshold often enough; here
it is a number, the mean of the strongest 5 % of the change between neighbouring frames, after the median change of each
step and channel (what a flickering light does to all pixels) is taken off. It tells motion from stillness, not good
motion from bad: grain, jitter and jumps raise it. To watch, not to train on.
"""

from __future__ import annotations

from pathlib import Path

from torch.nn import functional as F

from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

SHARE = 0.05


def load(path: str | Path | None = None, device: str = "cpu") -> DynamicDegree:
    return DynamicDegree()


class DynamicDegree:
    """A `Reward` from 0, a still picture, to 2, where all that moves flashes."""

    name = "dynamic-degree"
    dimensions = ("dynamic degree",)
    differentiable = True
    card = CriticCard("analytic, of besttake", "Apache-2.0", {"dynamic degree": (0.0, 2.0)})

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with two frames or more, or the prompts are not `b`.
        """
        check_videos(self.name, videos, prompts)
        change = videos.float().diff(dim=1)
        change = change - change.flatten(3).median(3).values[..., None, None]
        strength = (
            F.avg_pool2d(change.flatten(0, 1), 3, 1, 1).abs().mean(1).unflatten(0, change.shape[:2]).flatten(2) / 2
        )
        most = strength.topk(max(1, int(SHARE * strength.shape[2])), dim=2).values
        return Score(most.mean((1, 2))[:, None], self.dimensions)
