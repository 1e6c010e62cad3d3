"""What a run looks at while it trains: fixed prompts, fixed seeds, and critics it does not train on."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from besttake.configuration import require
from besttake.data.prompts import described, read_prompts
from besttake.data.room import amount
from besttake.data.video import enlargement, write_video
from besttake.distributed import agree_on_each, leads, share, together
from besttake.policy import Policy
from besttake.rewards import load_reward
from besttake.rewards.checks import shared
from besttake.rewards.guard import GuardConfig
from besttake.rewards.partial import given
from besttake.rollout import RolloutConfig, generate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MonitorConfig:
    """How a run is watched."""

    every: int = 20
    """Steps between two looks; 0 = never."""
    prompts: str = "world-validation"
    """File of prompts, one a line, or an embedded list."""
    count: int = 16
    """How many of them are shot."""
    rewards: tuple[str, ...] = ("world", "heldout", "dynamic-degree")
    """Critics whose mean scores are logged; none of them is trained on for being here."""
    samples: int = 4
    """How many of the videos are kept as mp4."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    keep: int = 20
    """Looks whose videos are kept: the first, and the newest; 0 = all."""

    def __post_init__(self):
        require(self.every >= 0, "every", self.every, "0 or more")
        require(self.count >= 1, "count", self.count, "1 or more")
        require(self.keep == 0 or self.keep >= 2, "keep", self.keep, "2 or more, or 0 = all")


class Monitor:
    """Looks at a policy: the same prompts and noise every time, so that curves and clips can be compared."""

    def __init__(self, config: MonitorConfig, policy: Policy, folder: Path, seed: int, device: str):
        self.config, self.policy, self.folder, self.seed = config, policy, folder / "samples", seed
        self.rewards = []
        if config.every:
            self.prompts = read_prompts(config.prompts)[: config.count]
            policy.model.check_prompts(self.prompts)
            agree_on_each("monitor.prompts", map(described, self.prompts))
            self.rewards = [load_reward(name, device) for name in config.rewards]

    def look(self, step: int) -> dict[str, float]:
        """Shoot the prompts, keep a few of the videos, and say what the critics say of all."""
        with self.policy.averaged():
            takes = generate(self.policy, self.prompts, self.config.rollout, seed=(self.seed, 1_000_000_007))
        target, fps = self.folder / _name(step), self.config.rollout.rate(self.policy.model)
        with together():
            target.mkdir(parents=True, exist_ok=True)
            for i, video in zip(share(len(self.prompts)), takes.videos, strict=True):
                if i < self.config.samples:
                    write_video(target / f"{i:02d}.mp4", video, fps, upscale=enlargement(video))
        if leads() and self.config.keep:
            self._forget(step)
        row = {}
        for reward in self.rewards:
            score = shared(reward, takes.videos, takes.prompts, fps)
            there = given(score)
            for dimension in score.dimensions if there.any() else ():
                row[f"monitor/{reward.name}/{dimension}"] = score[dimension][there].mean().item()
        return row

    def _forget(self, step: int) -> None:
        """Delete the videos of all looks up to a step but the first and the newest."""
        looks = sorted(path for path in self.folder.glob("step-*") if path.name <= _name(step))
        old = looks[1 : len(looks) - self.config.keep + 1]
        size = sum(file.stat().st_size for folder in old for file in folder.iterdir())
        for folder in old:
            shutil.rmtree(folder)
        if old:
            keep = self.config.keep
            log.info("%s: %d old looks are removed, %s (monitor.keep is %d)", self.folder, len(old), amount(size), keep)


def _name(step: int) -> str:
    return f"step-{step:08d}"
