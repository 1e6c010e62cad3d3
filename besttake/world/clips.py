"""Captioned clips of the world, deterministic in the seed to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from besttake.world.captions import Caption, sample_caption
from besttake.world.film import make_film, render
from besttake.world.flaws import PRETRAINING_MIX, add_flaws
from besttake.world.physics import FRAMES


@dataclass(frozen=True)
class Clip:
    """Frames `f c h w` in [-1, 1], their caption, and their flaws with severities (empty = clean)."""

    video: Tensor
    caption: Caption
    flaws: dict[str, float]


def make_clip(
    seed: int,
    index: int,
    split: str | None = "train",
    flawed_share: float = 0.0,
    mix=PRETRAINING_MIX,
    frames: int = FRAMES,
) -> Clip:
    """Clip `index` of the stream `seed`; independent of other clips."""
    rng = np.random.default_rng([seed, index])
    return film_clip(sample_caption(rng, split), rng, flawed_share, mix, frames)


def film_clip(
    caption: Caption, rng: np.random.Generator, flawed_share: float = 0.0, mix=PRETRAINING_MIX, frames: int = FRAMES
) -> Clip:
    """Render a clip of a caption."""
    film = make_film(caption, rng, frames)
    flaws = add_flaws(film, rng, mix) if rng.random() < flawed_share else {}
    return Clip(render(film, rng), caption, flaws)


def make_batch(
    seed: int, start: int, n: int, split: str | None = "train", flawed_share: float = 0.0, frames: int = FRAMES
):
    """Clips `start` to `start + n` of a stream: videos `b f c h w`, and the list of clips."""
    clips = [make_clip(seed, start + i, split, flawed_share, frames=frames) for i in range(n)]
    return torch.stack([clip.video for clip in clips]), clips
