"""Several critics as one: sums and products of their dimensions, normalised alike, or votes on pairs of candidates.

Critics have different scales: one from 1 to 5, another from .2 to .3. So a dimension can be normalised among the
candidates of each prompt (as GRPO's advantages are, arXiv 2402.03300) or by its running mean and deviation. And they
err in different ways: two candidates that all critics order alike, each by more than its noise, make a good pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from besttake.data.cache import GB
from besttake.rewards import load_reward
from besttake.rewards.cache import LIMIT, CachedReward
from besttake.rewards.checks import parse_weights, score_shard
from besttake.rewards.normalise import RunningNormaliser, within_prompts
from besttake.rewards.partial import scored_mask
from besttake.rewards.remote.judge import Judge, JudgeConfig
from besttake.runtime.distributed import all_reduce_counts
from besttake.types import FPS, Reward, Video

Combine = Literal["sum", "product", "vote"]
Normalise = Literal["none", "prompt", "batch"]


@dataclass(frozen=True)
class RewardConfig:
    """Which critic, or critics, rank the takes, and by what."""

    name: str = "world"
    """A critic's name, a file of your own (./my_critic.py), a judge's .yaml file, or the URL of a served critic
    (several with commas between)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each of the critic's dimensions that counts; empty = all of them, equally."""
    critics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Several critics instead of `name`, each with the weights of its dimensions."""
    combine: Combine = "sum"
    """One number of all: the weighted sum, or the product with weights as exponents; or a vote on every pair."""
    normalise: Normalise = "none"
    """Each dimension to mean 0 and deviation 1: among the takes of a prompt, or by its running mean and deviation."""
    margins: dict[str, float] = field(default_factory=dict)
    """By how much each critic must prefer a take for its vote to count; see `besttake score --calibrate`."""
    judges: dict[str, JudgeConfig] = field(default_factory=dict)
    """Generative critics by the names that `name` or `critics` calls them by."""
    paths: dict[str, str] = field(default_factory=dict)
    """Folder or hub id of each critic's weights; by default those published. Of a judge, the URL of its server."""
    settings: dict[str, dict[str, float]] = field(default_factory=dict)
    """What single critics take besides, such as {videoalign: {num_frames: 8}}."""
    frames: int = 8
    """How many frames of a clip image critics look at."""
    aggregate: Literal["mean", "min", "segments"] = "mean"
    """One number of those frames' scores: their mean, the worst, or InstructVideo's weights of segments."""
    cache: Path | None = None
    """Folder where scores are kept, for takes that are scored again; none = nowhere."""
    cache_limit: float = LIMIT / GB
    """GB of disk that it may take, of all critics together; what was used longest ago makes room."""

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; an image critic looks at one frame or more")
        if self.critics and self.weights:
            raise ValueError(f"weights is {self.weights} beside critics; give each critic its own weights")
        if self.critics and self.name != RewardConfig.name:
            raise ValueError(f"name is {self.name!r} beside critics; add it to the critics, or leave it out")
        if self.margins and self.combine != "vote":
            raise ValueError(f"margins are of votes, and combine is {self.combine}; use the algorithm's margin")
        for key in ("margins", "judges", "paths", "settings"):
            if unknown := sorted(getattr(self, key).keys() - self.chosen.keys()):
                raise ValueError(f"{key} names {', '.join(unknown)}; the critics are {', '.join(self.chosen)}")

    @property
    def chosen(self) -> Mapping[str, Mapping[str, float]]:
        """The weights of every critic that is trained on."""
        return self.critics or {self.name: self.weights}


@dataclass(frozen=True)
class PanelScores:
    """A panel's scores of `b` videos.

    Attributes:
        values: float32 (b, k), higher is better: a column for each voter; one column where critics are combined.
        scored: which videos every critic has scored; rows of `values` of the others are 0 and mean nothing.
        margins: float32 (k,): differences within it are no preference of that voter.
        metrics: numbers to log. "reward/mean" is the mean of the weighted sum before it is normalised, since normalised
            scores are 0 on average however good the videos are; each of several critics has its own.
            "reward/abstained" counts the videos without a score, where there are any; judges count answers, tokens and
            cost.
    """

    values: Float[Tensor, "b k"]
    scored: Bool[Tensor, "b"]
    margins: Float[Tensor, "k"]
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Float[Tensor, "b"]) -> PanelScores:
        """Those of a single voter who scores every video."""
        everyone = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        return cls(
            scores[:, None], everyone, torch.zeros(1, device=scores.device), {"reward/mean": scores.mean().item()}
        )


class Panel:
    """Critics with the weights of their dimensions, asked together."""

    def __init__(
        self,
        critics: Mapping[str, tuple[Reward, Mapping[str, float]]],
        combine: Combine = "sum",
        normalise: Normalise = "none",
        margins: Mapping[str, float] | None = None,
    ):
        """
        Raises:
            ValueError: a critic has no such dimension, or a weight is none.
        """
        self.critics = {name: (reward, parse_weights(reward, weights)) for name, (reward, weights) in critics.items()}
        self.combine, self.normalise = combine, normalise
        self.margins = [(margins or {}).get(name, 0.0) for name in critics] if combine == "vote" else [0.0]
        self.running = {name: RunningNormaliser(len(weights)) for name, (_, weights) in self.critics.items()}

    @property
    def rewards(self) -> list[Reward]:
        """The critics themselves."""
        return [reward for reward, _ in self.critics.values()]

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> PanelScores:
        """
        Args:
            videos: of several processes, those of this one's `share` of the prompts; the ballots are of all of them.

        Raises:
            ValueError: a critic fails, or a product is taken of numbers that are not positive.
        """
        scores = {name: score_shard(reward, videos, prompts, fps) for name, (reward, _) in self.critics.items()}
        scored = torch.stack([scored_mask(score) for score in scores.values()]).all(0)
        raw, parts = {}, []
        for name, score in scores.items():
            weights = self.critics[name][1]
            values = torch.stack([score[dimension] for dimension in weights], 1)
            raw[name] = weighted_sum(values, weights)
            parts.append(self._part(name, self._normalised(name, values, prompts, scored), scored))
        values = torch.stack(parts, 1)
        if self.combine != "vote":
            values = values.prod(1, True) if self.combine == "product" else values.sum(1, True)
        values = torch.where(scored[:, None], values, 0)
        plain = self.combine == "product" and self.normalise == "none"
        reward = values[:, 0] if plain else torch.stack(list(raw.values())).sum(0)
        return PanelScores(values, scored, values.new_tensor(self.margins), self._metrics(reward, raw, scored))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep: running means and deviations, if the panel normalises by them."""
        if self.normalise != "batch":
            return {}
        return {f"{name}/{what}": value for name, seen in self.running.items() for what, value in vars(seen).items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for key, value in state.items():
            name, _, what = key.rpartition("/")
            setattr(self.running[name], what, value.clone())

    def _normalised(
        self, name: str, values: Float[Tensor, "b d"], prompts: Sequence[str], scored: Bool[Tensor, "b"]
    ) -> Float[Tensor, "b d"]:
        if self.normalise == "prompt":
            return within_prompts(values, prompts, scored)
        if self.normalise == "batch":
            return self.running[name](values, scored)
        return values

    def _part(self, name: str, values: Float[Tensor, "b d"], scored: Bool[Tensor, "b"]) -> Float[Tensor, "b"]:
        """One number of a critic's dimensions."""
        weights = self.critics[name][1]
        if self.combine != "product":
            return weighted_sum(values, weights)
        if self.normalise != "none":  # a normalised score may be negative; the share of a bell curve below it is not
            return weighted_sum(torch.special.log_ndtr(values), weights).exp()
        values = torch.where(scored[:, None], values, 1)
        if (values <= 0).any():
            raise ValueError(
                f"critic {name} scored {values.min().item():g}, and a product needs numbers above 0; "
                "set reward.normalise, or combine: sum"
            )
        return weighted_sum(values.log(), weights).exp()

    def _metrics(
        self, reward: Float[Tensor, "b"], raw: Mapping[str, Float[Tensor, "b"]], scored: Bool[Tensor, "b"]
    ) -> dict[str, float]:
        columns = {"reward/mean": reward}
        if len(raw) > 1:
            columns |= {f"reward/{name}": column for name, column in raw.items()}
        metrics = {name: column[scored].mean().item() for name, column in columns.items() if scored.any()}
        if not scored.all():
            metrics["reward/abstained"] = float((~scored).sum())
        for critic, _ in self.critics.values():
            metrics |= all_reduce_counts(getattr(critic, "metrics", dict)())
        return metrics


def weighted_sum(values: Float[Tensor, "b d"], weights: Mapping[str, float]) -> Float[Tensor, "b"]:
    """The sum of the columns, each with its weight."""
    columns = zip(values.T, weights.values(), strict=True)
    return torch.stack([weight * column for column, weight in columns]).sum(0)


def load_panel(config: RewardConfig, device: str = "cpu") -> Panel:
    """The critics of a recipe.

    Raises:
        ValueError: there is no such critic, or it has no such dimension.
    """
    critics: dict[str, tuple[Reward, Mapping[str, float]]] = {}
    looks = {"frames": config.frames, "aggregate": config.aggregate}
    for name, weights in config.chosen.items():
        if name in config.judges:
            reward: Reward = Judge(config.judges[name], name)
        else:
            settings = config.settings.get(name, {})
            reward = load_reward(name, device, config.paths.get(name), looks, **settings)
        if config.cache:
            reward = CachedReward(reward, config.cache, int(config.cache_limit * GB))
        critics[name] = reward, weights
    return Panel(critics, config.combine, config.normalise, config.margins)
