"""Analytic critic: how little the light changes from frame to frame where nothing moves.

After VBench's temporal flickering, 1 - the mean absolute difference of neighbouring frames, but of luminance averaged
over 8 x 8 patches, and of the quieter half of them in each step, so that motion is not taken for flicker; VBench takes
all pixels, of clips that stand still, and its numbers are others. It is no
measure of quality: a still picture scores highest, and the flicker of a small body goes unseen.
"""

from __future__ import annotations

from pathlib import Path

from torch.nn import functional as F

from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

PATCHES = 8
"""Along each side, at most; a patch is a pixel in a picture smaller than that."""


def load(path: str | Path | None = None, device: str = "cpu") -> TemporalFlicker:
    return TemporalFlicker()


class TemporalFlicker:
    """A `Reward` in [0, 1]; 1 = no flicker."""

    name = "temporal-flicker"
    dimensions = ("temporal flicker",)
    differentiable = True
    card = CriticCard("analytic, of besttake", "Apache-2.0", {"temporal flicker": (0.0, 1.0)})

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with two frames or more, or the prompts are not `b`.
        """
        check_videos(self.name, videos, prompts)
        light = videos.float().mean(2)  # (b, f, h, w)
        size = min(PATCHES, light.shape[2]), min(PATCHES, light.shape[3])
        change = (
            F.adaptive_avg_pool2d(light, size).flatten(2).diff(dim=1).abs() / 2
        )  # (b, f - 1, patches), of the range
        quiet = change.sort(2).values[:, :, : (change.shape[2] + 1) // 2]
        return Score(1 - quiet.mean((1, 2))[:, None], self.dimensions)
