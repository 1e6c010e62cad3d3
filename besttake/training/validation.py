"""What a run looks at while it trains: fixed prompts, fixed seeds, and critics it does not train on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from besttake.data.disk_space import format_bytes
from besttake.data.prompts import describe_prompt, read_prompts
from besttake.data.video import upscale_for, write_video
from besttake.evaluation.before_after import ANALYTIC
from besttake.models.policy import Policy
from besttake.rewards import load_reward
from besttake.rewards.checks import score_shard
from besttake.rewards.guard import GuardConfig
from besttake.rewards.partial import scored_mask
from besttake.runtime.configuration import require
from besttake.runtime.distributed import check_equal_items, is_main, raise_on_all, shard_rows
from besttake.sampling.rollout import RolloutConfig, RolloutOverrides, generate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationConfig:
    """How a run is validated."""

    every: int = 20
    """Steps between two validation passes; 0 = never."""
    prompts: str | None = None
    """Validation prompts: a file, one a line, or an embedded list. By default world-validation for data of the
    embedded world, and the evaluation's prompts for yours."""
    count: int = 16
    """Prompts sampled, one video each."""
    rewards: tuple[str, ...] = ()
    """Critics whose mean scores are logged. By default the analytic ones; on prompts of the embedded world its own two
    and the dynamic degree."""
    samples: int = 4
    """Videos of a pass kept as mp4, and sent to the trackers."""
    rollout: RolloutOverrides = field(default_factory=RolloutOverrides)
    """How validation samples otherwise than the run."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When to warn of reward hacking."""
    keep: int = 20
    """Passes whose videos are kept: the first, and the newest; 0 = all."""

    def __post_init__(self):
        require(self.every >= 0, "every", self.every, "0 or more")
        require(self.count >= 1, "count", self.count, "1 or more")
        require(self.keep == 0 or self.keep >= 2, "keep", self.keep, "2 or more, or 0 = all")

    def listed(self, family: str | None) -> str | None:
        """The file or list of prompts, in a run on data of a family of embedded ones, or of none."""
        return self.prompts or (family and f"{family}-validation")

    def critics(self, family: str | None) -> tuple[str, ...]:
        """The names of the critics that watch such a run."""
        world = (self.listed(family) or "").startswith("world-")
        return self.rewards or (("world", "heldout", "dynamic-degree") if world else ANALYTIC)


class Validator:
    """Looks at a policy: the same prompts and noise every time, so that curves and clips can be compared."""

    def __init__(
        self,
        config: ValidationConfig,
        policy: Policy,
        folder: Path,
        seed: int,
        device: str,
        family: str | None = "world",
        own: Sequence[str] = (),
    ):
        """
        Args:
            config: its `rollout` is whole: the run's own, with what looks have otherwise.
            family: of embedded lists, that the run's data are of.
            own: prompts of its data, if they are of none.
        """
        self.config, self.policy, self.folder, self.seed = config, policy, folder / "samples", seed
        self.rollout, self.rewards = config.rollout.over(RolloutConfig()), []
        if config.every:
            listed = config.listed(family)
            self.prompts = (read_prompts(listed) if listed else list(own))[: config.count]
            policy.model.check_prompts(self.prompts)
            check_equal_items("validation.prompts", map(describe_prompt, self.prompts))
            policy.model.latent_shape(*self.rollout.size(policy.model))
            self.rewards = [load_reward(name, device) for name in config.critics(family)]

    def validate(self, step: int) -> dict[str, float]:
        """Shoot the prompts, keep a few of the videos, and say what the critics say of all."""
        with self.policy.ema_weights():
            rollout = generate(self.policy, self.prompts, self.rollout, seed=(self.seed, 1_000_000_007))
        target, fps = self.folder / _name(step), self.policy.model.fps
        with raise_on_all():
            target.mkdir(parents=True, exist_ok=True)
            for i, video in zip(shard_rows(len(self.prompts)), rollout.videos, strict=True):
                if i < self.config.samples:
                    write_video(target / f"{i:02d}.mp4", video, fps, upscale=upscale_for(video))
        if is_main() and self.config.keep:
            self._forget(step)
        row = {}
        for reward in self.rewards:
            score = score_shard(reward, rollout.videos, rollout.prompts, fps)
            there = scored_mask(score)
            for dimension in score.dimensions if there.any() else ():
                row[f"eval/{reward.name}/{dimension}"] = score[dimension][there].mean().item()
        return row

    def kept(self, step: int) -> tuple[list[Path], list[str]]:
        """The video files of a step's validation pass, and their prompts."""
        files = sorted((self.folder / _name(step)).glob("*.mp4"))
        return files, self.prompts[: len(files)]

    def _forget(self, step: int) -> None:
        """Delete the videos of all looks up to a step but the first and the newest."""
        looks = sorted(path for path in self.folder.glob("step-*") if path.name <= _name(step))
        old = looks[1 : len(looks) - self.config.keep + 1]
        size = sum(file.stat().st_size for folder in old for file in folder.iterdir())
        for folder in old:
            shutil.rmtree(folder)
        if old:
            keep = self.config.keep
            log.info(
                "%s: %d old looks are removed, %s (validation.keep is %d)",
                self.folder,
                len(old),
                format_bytes(size),
                keep,
            )


def _name(step: int) -> str:
    return f"step-{step:08d}"
