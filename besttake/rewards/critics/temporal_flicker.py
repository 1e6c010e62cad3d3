"""Analytic critic: stability of the brightness from frame to frame where nothing moves.

Like VBench's temporal flickering, 1 - the mean absolute difference of neighbouring frames, but of luminance averaged
over an 8 x 8 grid of patches, and only of the half of the patches that changes least in each step, so that motion does
not count as flicker. (VBench uses all pixels of static clips, so its numbers differ.) It is no measure of quality: a
still picture scores highest, and the flicker of a small object is not detected.
"""

from __future__ import annotations

from pathlib import Path

from torch.nn import functional as F

from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

PATCHES = 8
"""Patches along each side; smaller pictures have one patch per pixel."""


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
        )  # (b, f - 1, patches), as a fraction of the value range
        quiet = change.sort(2).values[:, :, : (change.shape[2] + 1) // 2]
        return Score(1 - quiet.mean((1, 2))[:, None], self.dimensions)
