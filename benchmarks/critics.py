"""Agreement of the training critic with the exact measures: correlations within prompts, as Markdown tables.

    python benchmarks/critics.py                     # 40 validation prompts x 8 candidates; four minutes

A critic ranks candidates of one prompt, so the prompts' means are subtracted. Measures of flaws should correlate
negatively with every score; the pairwise accuracy is on films of test captions, with labels as in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import tyro
from torch import Tensor

from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.rewards import load_reward
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.world.captions import Caption
from besttake.world.measure import measure_all
from besttake.world.pretrain_critics import graded_batch


@dataclass(frozen=True)
class CriticsConfig:
    """Model, number of candidates, and critic."""

    model: str = "tiny-cogvideox"
    critic: str = "world"
    prompts: int = 40
    candidates: int = 8
    seed: int = 5
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(steps=8))
    films: int = 60
    """Captions of the test split, four films each, for the pairwise accuracy."""


def main(config: CriticsConfig) -> None:
    """Print the table, and the fraction of candidates that leave their track, by motion."""
    prompts = read_prompts("world-validation")[: config.prompts]
    model = load_model(config.model)
    candidates = generate(model, prompts, config.rollout, n=config.candidates, seed=(config.seed,))
    measures = measure_all(candidates.videos, candidates.prompts)
    measures_of_candidates = {
        "number of flaws": torch.tensor([len(flaws) for flaws in measures["flaws"]]).float(),
        "error of the track": torch.from_numpy(np.minimum(measures["track_error"], 6.0)).float(),
        "dynamic degree": torch.from_numpy(np.asarray(measures["dynamic_degree"])).float(),
        "held-out critic": load_reward("heldout")(candidates.videos, candidates.prompts).values[:, 0],
    }
    critic = load_reward(config.critic)
    score, right = critic(candidates.videos, candidates.prompts), accuracy(critic, config.films)
    print(f"| {config.critic} | pairwise accuracy | " + " | ".join(measures_of_candidates) + " |")
    print("| --- " * (len(measures_of_candidates) + 2) + "|")
    for i, dimension in enumerate(score.dimensions):
        cells = [
            f"{within(score[dimension], measure, config.candidates):.2f}" for measure in measures_of_candidates.values()
        ]
        print(f"| {dimension} | {right[i]:.2f} | " + " | ".join(cells) + " |")
    print("\n| motion | candidates | off their track |\n| --- | --- | --- |")
    off_track = np.array(["astray" in flaws for flaws in measures["flaws"]])
    motions = np.array([Caption.parse(prompt).motion for prompt in candidates.prompts])
    for motion in np.unique(motions):
        print(f"| {motion} | {(motions == motion).sum()} | {off_track[motions == motion].mean():.2f} |")


def within(a: Tensor, b: Tensor, candidates: int) -> float:
    """Correlation of two numbers of each candidate after subtracting the prompts' means."""
    a, b = (x.view(-1, candidates) - x.view(-1, candidates).mean(1, keepdim=True) for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


def accuracy(critic, prompts: int, candidates: int = 4, apart: float = 0.05) -> list[float]:
    """How often the better of two films of a prompt, `apart` or more in true quality, scores higher: per dimension."""
    films = graded_batch(99, 0, prompts, candidates, "test")
    score = critic(films.videos, [str(caption) for caption in films.prompt_captions]).values
    true, scores = (x.view(prompts, candidates, -1) for x in (films.qualities, score))
    gap = true[:, :, None] - true[:, None]
    right = (gap * (scores[:, :, None] - scores[:, None])) > 0
    return [float(right[..., i][gap[..., i] > apart].float().mean()) for i in range(gap.shape[-1])]


if __name__ == "__main__":
    main(tyro.cli(CriticsConfig))
