"""Analytic critic: how well each frame is interpolated by the mean of its neighbours.

VBench drops every second frame and restores it with a learned interpolator; here the mean of both neighbours is used.
The score detects shaking, flicker and jumps, but fast smooth motion lowers it too, and a still picture scores highest.
Use it to compare videos of one prompt, not of different prompts.
"""

from __future__ import annotations

from pathlib import Path

from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video


def load(path: str | Path | None = None, device: str = "cpu") -> MotionSmoothness:
    return MotionSmoothness()


class MotionSmoothness:
    """A `Reward` in [0, 1]; 1 = each frame is the mean of its neighbours."""

    name = "motion-smoothness"
    dimensions = ("motion smoothness",)
    differentiable = True
    card = CriticCard("analytic, of besttake", "Apache-2.0", {"motion smoothness": (0.0, 1.0)})

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with three frames or more, or the prompts are not `b`.
        """
        check_videos(self.name, videos, prompts, least_frames=3)
        videos = videos.float()
        error = (videos[:, 1:-1] - (videos[:, :-2] + videos[:, 2:]) / 2).abs() / 2  # as a fraction of the value range
        return Score(1 - error.mean((1, 2, 3, 4))[:, None], self.dimensions)
