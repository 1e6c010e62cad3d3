"""Detection rates: the fraction of clips in which the measures find each flaw, by severity, as a Markdown table.

    python benchmarks/detection.py                   # 100 clips per cell; two minutes on one core

Clips of validation captions, slightly blurred (0.4 pixels) and noisy (0.02), like after an autoencoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from torch import Tensor

from besttake.world.captions import Caption, sample_caption
from besttake.world.film import make_film, render
from besttake.world.flaws import FLAWS
from besttake.world.measure import measure_all
from besttake.world.pretrain_critics import soften

CALLED = {"stray": "astray", "warp": "any", "mesh": "any", "glare": "any"}
"""The measures' name of a flaw; three have no measure of their own."""


@dataclass(frozen=True)
class DetectionConfig:
    """Number of clips and severities."""

    clips: int = 100
    severities: tuple[float, ...] = (0.5, 0.75, 1.0)
    seed: int = 77


def main(config: DetectionConfig) -> None:
    """Print the table."""
    print("| flaw | " + " | ".join(f"severity {severity:g}" for severity in config.severities) + " |")
    print("| --- " * (1 + len(config.severities)) + "|")
    for name in FLAWS:
        detected = [shares(name, severity, config) for severity in config.severities]
        called = CALLED.get(name, name)
        print(f"| {name} | " + " | ".join(f"{s.get(called, 0.0):.2f}" for s in detected) + " |")
    clean = shares(None, 0.0, config)
    print(f"\nclean clips with any flaw: {clean['any']:.3f}")


def shares(flaw: str | None, severity: float, config: DetectionConfig) -> dict[str, float]:
    """The fraction of clips in which each flaw is detected, and `any`."""
    videos, captions = zip(*(film(flaw, severity, config.seed, i) for i in range(config.clips)), strict=True)
    soft = soften(torch.stack(videos), torch.full((len(videos),), 0.4), 2 * 0.02, torch.Generator().manual_seed(0))
    flaws_of_clips = measure_all(soft, [str(caption) for caption in captions])["flaws"]
    names = {name for flaws in flaws_of_clips for name in flaws}
    return {
        "any": np.mean([bool(flaws) for flaws in flaws_of_clips]),
        **{n: np.mean([n in f for f in flaws_of_clips]) for n in names},
    }


def film(flaw: str | None, severity: float, seed: int, i: int) -> tuple[Tensor, Caption]:
    rng = np.random.default_rng([seed, i])
    caption = sample_caption(rng, "validation")
    clip = make_film(caption, rng)
    if flaw:
        FLAWS[flaw](clip, severity, rng)
    return render(clip, rng), caption


if __name__ == "__main__":
    main(tyro.cli(DetectionConfig))
