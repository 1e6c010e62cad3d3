"""Analytic critic: amount of motion, corrected for changes in brightness.

VBench decides for each clip whether the strongest 5 % of its optical flow exceed a threshold often enough. This critic
returns a number: the mean of the strongest 5 % of the differences between neighbouring frames, after subtracting the
median difference of each step and channel (the effect of a flickering light on all pixels). It measures motion, not
its quality: grain, jitter and jumps raise it. Use it for monitoring, not for training.
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
    """A `Reward` from 0 (a still picture) to 2."""

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
