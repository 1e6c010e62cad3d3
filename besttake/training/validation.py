"""Validation passes during training: fixed prompts, fixed seeds, and held-out critics."""

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
    """Validation passes."""

    every: int = 20
    """Steps between two validation passes; 0 = never."""
    prompts: str | None = None
    """Validation prompts: a file, one prompt per line, or an embedded list. By default world-validation for data of
    the embedded world, and the evaluation's prompts for yours."""
    count: int = 16
    """Number of prompts, one video each."""
    rewards: tuple[str, ...] = ()
    """Critics whose mean scores are logged. By default the analytic ones; for the embedded world, world, heldout and
    dynamic-degree."""
    samples: int = 4
    """Videos saved per pass as mp4, and sent to the trackers."""
    rollout: RolloutOverrides = field(default_factory=RolloutOverrides)
    """Sampling settings of validation that differ from the run's."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Reward-hacking alarm."""
    keep: int = 20
    """Passes whose videos are kept: the first and the newest ones; 0 = all."""

    def __post_init__(self):
        require(self.every >= 0, "every", self.every, "0 or more")
        require(self.count >= 1, "count", self.count, "1 or more")
        require(self.keep == 0 or self.keep >= 2, "keep", self.keep, "2 or more, or 0 = all")

    def prompt_source(self, family: str | None) -> str | None:
        """The prompt file or embedded list; `family` is that of the run's embedded data, None for other data."""
        return self.prompts or (family and f"{family}-validation")

    def critics(self, family: str | None) -> tuple[str, ...]:
        """The names of the validation critics; `family` as in `prompt_source`."""
        world = (self.prompt_source(family) or "").startswith("world-")
        return self.rewards or (("world", "heldout", "dynamic-degree") if world else ANALYTIC)


class Validator:
    """Validates a policy on the same prompts and noise every time, so that curves and clips are comparable."""

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
            config: with a complete `rollout` (`TrainConfig.validation_config`).
            family: name of the embedded world that the run's data come from; None for other data.
            own: prompts to use if `family` is None and the config names none.
        """
        self.config, self.policy, self.folder, self.seed = config, policy, folder / "samples", seed
        self.rollout, self.rewards = config.rollout.over(RolloutConfig()), []
        if config.every:
            listed = config.prompt_source(family)
            self.prompts = (read_prompts(listed) if listed else list(own))[: config.count]
            policy.model.check_prompts(self.prompts)
            check_equal_items("validation.prompts", map(describe_prompt, self.prompts))
            policy.model.latent_shape(*self.rollout.size(policy.model))
            self.rewards = [load_reward(name, device) for name in config.critics(family)]

    def validate(self, step: int) -> dict[str, float]:
        """Sample the prompts, save a few of the videos, and score all of them.

        Returns:
            Mean scores, as "eval/critic/dimension".
        """
        with self.policy.ema_weights():
            rollout = generate(self.policy, self.prompts, self.rollout, seed=(self.seed, 1_000_000_007))
        target, fps = self.folder / _name(step), self.policy.model.fps
        with raise_on_all():
            target.mkdir(parents=True, exist_ok=True)
            for i, video in zip(shard_rows(len(self.prompts)), rollout.videos, strict=True):
                if i < self.config.samples:
                    write_video(target / f"{i:02d}.mp4", video, fps, upscale=upscale_for(video))
        if is_main() and self.config.keep:
            self._delete_old_videos(step)
        row = {}
        for reward in self.rewards:
            score = score_shard(reward, rollout.videos, rollout.prompts, fps)
            scored = scored_mask(score)
            for dimension in score.dimensions if scored.any() else ():
                row[f"eval/{reward.name}/{dimension}"] = score[dimension][scored].mean().item()
        return row

    def saved_videos(self, step: int) -> tuple[list[Path], list[str]]:
        """The video files of a step's validation pass, and their prompts."""
        files = sorted((self.folder / _name(step)).glob("*.mp4"))
        return files, self.prompts[: len(files)]

    def _delete_old_videos(self, step: int) -> None:
        """Delete the videos of all passes up to `step` except the first and the newest ones."""
        passes = sorted(path for path in self.folder.glob("step-*") if path.name <= _name(step))
        old = passes[1 : len(passes) - self.config.keep + 1]
        size = sum(file.stat().st_size for folder in old for file in folder.iterdir())
        for folder in old:
            shutil.rmtree(folder)
        if old:
            keep = self.config.keep
            log.info(
                "%s: deleted the videos of %d old validation passes, %s (validation.keep is %d)",
                self.folder,
                len(old),
                format_bytes(size),
                keep,
            )


def _name(step: int) -> str:
    return f"step-{step:08d}"
