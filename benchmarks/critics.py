"""Does the training critic rank takes as the measures do? Correlations within a prompt, as Markdown tables.

    python benchmarks/critics.py                     # 40 validation prompts x 8 takes of the base model; four minutes

A critic ranks takes of one prompt, so prompts' means are taken out first. Measures of flaws should correlate
negatively with every score; the pairwise accuracy is that of the critic's own kind of labels on films of test captions.
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
    """Which model's takes, how many, and which critic."""

    model: str = "tiny-cogvideox"
    critic: str = "world"
    prompts: int = 40
    candidates: int = 8
    seed: int = 5
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(steps=8))
    films: int = 60
    """Captions of the test split, four films each, for the pairwise accuracy."""


def main(config: CriticsConfig) -> None:
    """Print that table, and which motions the model knows: the share of its takes that leave their track."""
    prompts = read_prompts("world-validation")[: config.prompts]
    model = load_model(config.model)
    takes = generate(model, prompts, config.rollout, n=config.candidates, seed=(config.seed,))
    measures = measure_all(takes.videos, takes.prompts)
    seen = {
        "number of flaws": torch.tensor([len(flaws) for flaws in measures["flaws"]]).float(),
        "error of the track": torch.from_numpy(np.minimum(measures["track_error"], 6.0)).float(),
        "dynamic degree": torch.from_numpy(np.asarray(measures["dynamic_degree"])).float(),
        "held-out critic": load_reward("heldout")(takes.videos, takes.prompts).values[:, 0],
    }
    critic = load_reward(config.critic)
    score, right = critic(takes.videos, takes.prompts), accuracy(critic, config.films)
    print(f"| {config.critic} | pairwise accuracy | " + " | ".join(seen) + " |")
    print("| --- " * (len(seen) + 2) + "|")
    for i, dimension in enumerate(score.dimensions):
        cells = [f"{within(score[dimension], measure, config.candidates):.2f}" for measure in seen.values()]
        print(f"| {dimension} | {right[i]:.2f} | " + " | ".join(cells) + " |")
    print("\n| motion | takes | off their track |\n| --- | --- | --- |")
    astray = np.array(["astray" in flaws for flaws in measures["flaws"]])
    motions = np.array([Caption.parse(prompt).motion for prompt in takes.prompts])
    for motion in np.unique(motions):
        print(f"| {motion} | {(motions == motion).sum()} | {astray[motions == motion].mean():.2f} |")


def within(a: Tensor, b: Tensor, takes: int) -> float:
    """Correlation of two numbers of each take, prompts' means taken out."""
    a, b = (x.view(-1, takes) - x.view(-1, takes).mean(1, keepdim=True) for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


def accuracy(critic, prompts: int, takes: int = 4, apart: float = 0.05) -> list[float]:
    """How often the better of two films of a prompt, `apart` or more in true quality, scores higher: per dimension."""
    films = graded_batch(99, 0, prompts, takes, "test")
    score = critic(films.videos, [str(caption) for caption in films.asked]).values
    true, said = (x.view(prompts, takes, -1) for x in (films.qualities, score))
    gap = true[:, :, None] - true[:, None]
    right = (gap * (said[:, :, None] - said[:, None])) > 0
    return [float(right[..., i][gap[..., i] > apart].float().mean()) for i in range(gap.shape[-1])]


if __name__ == "__main__":
    main(tyro.cli(CriticsConfig))
