"""How much better a run has made its videos: what critics say of them and, for clips of the world, what is measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from besttake.data.prompts import read_prompts
from besttake.embedded import embedded_prompts
from besttake.evaluation.before_after import (
    EvaluateConfig,
    base_model,
    critics_say,
    shoot_before_after,
    trained_model,
    write_evaluation,
    write_summary,
)
from besttake.evaluation.frechet import frechet_distance
from besttake.models import VideoModel
from besttake.rewards.heldout import HeldoutCritic
from besttake.rewards.heldout import load as load_heldout
from besttake.world.captions import Caption
from besttake.world.clips import film_clip
from besttake.world.measure import measure_all
from besttake.world.measure import summary as measured
from besttake.world.physics import FRAMES, WIDTH

REFERENCES = 4
"""Clean clips per prompt that the Frechet distance compares with."""


ANALYTIC = ("dynamic-degree", "temporal-flicker", "motion-smoothness")
"""Critics of any clip."""

WORLD = ("world", "heldout", *ANALYTIC)
"""Critics of the world's clips."""


def evaluate(run: Path, config: EvaluateConfig, about: dict[str, Any]) -> dict[str, Any]:
    """Shoot, measure, and write `summary.json` and the videos of the report; the summary.

    Clips of the world's size with captions of its grammar are measured, and compared with clean ones; of others only
    the critics are asked.
    """
    prompts = read_prompts(embedded_prompts(config.prompts))
    prompts = (prompts * (config.count // len(prompts) + 1))[: config.count]
    before, after = shoot_before_after(run, prompts, config)
    sets, frames = {"before": before.videos.cpu(), "after": after.videos.cpu()}, before.videos.shape[1]
    judge: Callable[[Tensor], dict[str, float]] = partial(_critics, config.rewards or ANALYTIC, prompts)
    if of_the_world(before.videos, prompts):
        sets["real"] = real_clips(prompts, run, frames)
        judge = Judge(prompts, config.rewards or WORLD, frames)
    summary: dict[str, Any] = {name: judge(videos) for name, videos in sets.items()}
    summary["about"] = {"prompts": config.prompts, "clips": config.count, "seed": config.seed, **about}
    write_evaluation(run, sets, prompts, config.shown, base_model(run).fps)
    write_summary(run, summary)
    return summary


def of_the_world(videos: Tensor, prompts: list[str]) -> bool:
    """Whether videos `b f c h w` are of the world's size, and their prompts of its grammar."""
    if videos.shape[1] < FRAMES or tuple(videos.shape[2:]) != (3, WIDTH, WIDTH):
        return False
    try:
        return all(Caption.parse(prompt) for prompt in prompts)
    except ValueError:
        return False


def _critics(rewards: tuple[str, ...], prompts: list[str], videos: Tensor) -> dict[str, float]:
    return critics_say(rewards, videos, prompts)


class Judge:
    """Everything that is measured of a set of videos, one for each of the prompts."""

    def __init__(self, prompts: list[str], rewards: tuple[str, ...], frames: int = FRAMES):
        self.prompts, self.rewards, self.heldout = prompts, rewards, load_heldout()
        clean = [clean_clips(prompts, seed, frames) for seed in range(REFERENCES)]
        self.reference = torch.cat([features(self.heldout, videos, prompts) for videos in clean])

    def __call__(self, videos: Tensor) -> dict[str, float]:
        seen = measured(measure_all(videos, self.prompts))
        said = critics_say(self.rewards, videos, self.prompts)
        distance = frechet_distance(features(self.heldout, videos, self.prompts), self.reference)
        first = {name: seen.pop(name) for name in ("flawed_share", "dynamic_degree", "object_area")}
        heldout = self.heldout(videos, self.prompts).values.mean().item()
        first |= {"heldout_reward": heldout, "frechet_distance": distance}
        return {**first, **seen, **said}


def features(critic: HeldoutCritic, videos: Tensor, prompts: list[str], batch: int = 32) -> Tensor:
    """The held-out critic's features of many videos, a few at a time."""
    parts = range(0, len(videos), batch)
    return torch.cat([critic.features(videos[i : i + batch], prompts[i : i + batch]) for i in parts])


def clean_clips(prompts: list[str], seed: int, frames: int = FRAMES) -> Tensor:
    """One clean clip of each prompt, `b f c h w`."""
    clips = [
        film_clip(Caption.parse(prompt), np.random.default_rng([1000 + seed, i]), frames=frames)
        for i, prompt in enumerate(prompts)
    ]
    return torch.stack([clip.video for clip in clips])


def real_clips(prompts: list[str], run: Path, frames: int = FRAMES) -> Tensor:
    """Clean clips through the model's autoencoder: the best its videos could look."""
    return through_autoencoder(trained_model(run), clean_clips(prompts, 99, frames))


@torch.no_grad()
def through_autoencoder(model: VideoModel, videos: Tensor, batch: int = 16) -> Tensor:
    """Videos encoded and decoded again."""
    return torch.cat([model.decode(model.encode(part)) for part in videos.split(batch)]).float().clamp(-1, 1)
