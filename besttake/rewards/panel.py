"""Panel of critics: a weighted sum or product of their dimensions, or votes on pairs of candidates.

Critics have different scales, such as 1 to 5 or .2 to .3, so each dimension can be normalised within the candidates of
each prompt (like GRPO's advantages, arXiv 2402.03300) or by its running mean and standard deviation. Critics also make
different errors: two candidates that all critics order alike, each beyond its noise margin, make a reliable pair.
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
    """Critics that rank the candidates, and how their scores are combined."""

    name: str = "world"
    """Critic: a name, ./my_critic.py, a judge's .yaml file, or the URL of a served critic (several separated by
    commas)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Dimension -> weight; empty = all dimensions of the critic equally."""
    critics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Several critics instead of `name`: critic -> weights of its dimensions."""
    combine: Combine = "sum"
    """Combine all dimensions by weighted sum, by product (weights as exponents), or by a vote on every pair."""
    normalise: Normalise = "none"
    """Normalise each dimension: within the candidates of a prompt, or by running mean and deviation ("batch")."""
    margins: dict[str, float] = field(default_factory=dict)
    """Score difference below which a critic's vote is a tie, per critic; see `besttake score --calibrate`."""
    judges: dict[str, JudgeConfig] = field(default_factory=dict)
    """Configurations of generative judges, by the names used in `name` or `critics`."""
    paths: dict[str, str] = field(default_factory=dict)
    """Folder or hub id of each critic's weights; default: the published ones. For a judge, the URL of its server."""
    settings: dict[str, dict[str, float]] = field(default_factory=dict)
    """Further settings of single critics, such as {videoalign: {num_frames: 8}}."""
    frames: int = 8
    """Frames per video that image critics score."""
    aggregate: Literal["mean", "min", "segments"] = "mean"
    """How frame scores become one video score: mean, worst frame, or InstructVideo's segment weights."""
    cache: Path | None = None
    """Folder of the score cache; none = no cache."""
    cache_limit: float = LIMIT / GB
    """Largest size of the score cache in GB, over all critics; the least recently used scores are removed."""

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; expected 1 or more")
        if self.critics and self.weights:
            raise ValueError(f"weights ({self.weights}) and critics are both given; put the weights under each critic")
        if self.critics and self.name != RewardConfig.name:
            raise ValueError(f"name ({self.name!r}) and critics are both given; add it to critics, or leave it out")
        if self.margins and self.combine != "vote":
            raise ValueError(f"margins need combine: vote, but combine is {self.combine}; use the algorithm's margin")
        for key in ("margins", "judges", "paths", "settings"):
            if unknown := sorted(getattr(self, key).keys() - self.chosen.keys()):
                raise ValueError(f"{key} names {', '.join(unknown)}; the critics are {', '.join(self.chosen)}")

    @property
    def chosen(self) -> Mapping[str, Mapping[str, float]]:
        """Every training critic with the weights of its dimensions."""
        return self.critics or {self.name: self.weights}


@dataclass(frozen=True)
class PanelScores:
    """Scores of `b` videos by a panel.

    Attributes:
        values: float32 (b, k), higher is better: one column per voting critic, or a single combined column.
        scored: bool (b,), videos that every critic scored; the other rows of `values` are 0 and must be ignored.
        margins: float32 (k,): score differences up to the margin are ties of that column.
        metrics: numbers to log. "reward/mean" is the mean of the weighted sum before normalisation, since normalised
            scores always average 0; with several critics, "reward/NAME" is each critic's mean. "reward/abstained"
            counts the videos without a score, if any. Judges add counts of answers and tokens, and cost.
    """

    values: Float[Tensor, "b k"]
    scored: Bool[Tensor, "b"]
    margins: Float[Tensor, "k"]
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Float[Tensor, "b"]) -> PanelScores:
        """The scores of a single critic that scored every video."""
        all_scored = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        return cls(
            scores[:, None], all_scored, torch.zeros(1, device=scores.device), {"reward/mean": scores.mean().item()}
        )


class Panel:
    """Several critics, each with the weights of its dimensions, called as one."""

    def __init__(
        self,
        critics: Mapping[str, tuple[Reward, Mapping[str, float]]],
        combine: Combine = "sum",
        normalise: Normalise = "none",
        margins: Mapping[str, float] | None = None,
    ):
        """
        Raises:
            ValueError: a dimension is unknown, or a weight is not a finite number.
        """
        self.critics = {name: (reward, parse_weights(reward, weights)) for name, (reward, weights) in critics.items()}
        self.combine, self.normalise = combine, normalise
        self.margins = [(margins or {}).get(name, 0.0) for name in critics] if combine == "vote" else [0.0]
        self.normalisers = {name: RunningNormaliser(len(weights)) for name, (_, weights) in self.critics.items()}

    @property
    def rewards(self) -> list[Reward]:
        """The critics."""
        return [reward for reward, _ in self.critics.values()]

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> PanelScores:
        """
        Args:
            videos: videos of this process's rows (`shard_rows`) of the prompts; the scores returned are of all rows.

        Raises:
            ValueError: a critic fails, or `combine` is "product" and a score is not positive.
        """
        scores = {name: score_shard(reward, videos, prompts, fps) for name, (reward, _) in self.critics.items()}
        scored = torch.stack([scored_mask(score) for score in scores.values()]).all(0)
        raw, columns = {}, []
        for name, score in scores.items():
            weights = self.critics[name][1]
            values = torch.stack([score[dimension] for dimension in weights], 1)
            raw[name] = weighted_sum(values, weights)
            columns.append(self._column(name, self._normalise(name, values, prompts, scored), scored))
        values = torch.stack(columns, 1)
        if self.combine != "vote":
            values = values.prod(1, True) if self.combine == "product" else values.sum(1, True)
        values = torch.where(scored[:, None], values, 0)
        unnormalised = self.combine == "product" and self.normalise == "none"
        reward = values[:, 0] if unnormalised else torch.stack(list(raw.values())).sum(0)
        return PanelScores(values, scored, values.new_tensor(self.margins), self._metrics(reward, raw, scored))

    def state(self) -> dict[str, Tensor]:
        """State for checkpoints: the running statistics of `normalise: batch`."""
        if self.normalise != "batch":
            return {}
        return {
            f"{name}/{what}": value
            for name, normaliser in self.normalisers.items()
            for what, value in vars(normaliser).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for key, value in state.items():
            name, _, what = key.rpartition("/")
            setattr(self.normalisers[name], what, value.clone())

    def _normalise(
        self, name: str, values: Float[Tensor, "b d"], prompts: Sequence[str], scored: Bool[Tensor, "b"]
    ) -> Float[Tensor, "b d"]:
        if self.normalise == "prompt":
            return within_prompts(values, prompts, scored)
        if self.normalise == "batch":
            return self.normalisers[name](values, scored)
        return values

    def _column(self, name: str, values: Float[Tensor, "b d"], scored: Bool[Tensor, "b"]) -> Float[Tensor, "b"]:
        """A critic's dimensions combined into one score."""
        weights = self.critics[name][1]
        if self.combine != "product":
            return weighted_sum(values, weights)
        if self.normalise != "none":  # normalised scores may be negative, their normal CDF is not
            return weighted_sum(torch.special.log_ndtr(values), weights).exp()
        values = torch.where(scored[:, None], values, 1)
        if (values <= 0).any():
            raise ValueError(
                f"critic {name} returned the score {values.min().item():g}; combine: product needs scores above 0: "
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
    """The weighted sum of the columns."""
    columns = zip(values.T, weights.values(), strict=True)
    return torch.stack([weight * column for column, weight in columns]).sum(0)


def load_panel(config: RewardConfig, device: str = "cpu") -> Panel:
    """Load the critics of a recipe.

    Raises:
        ValueError: a critic or a dimension is unknown.
    """
    critics: dict[str, tuple[Reward, Mapping[str, float]]] = {}
    frame_settings = {"frames": config.frames, "aggregate": config.aggregate}
    for name, weights in config.chosen.items():
        if name in config.judges:
            reward: Reward = Judge(config.judges[name], name)
        else:
            settings = config.settings.get(name, {})
            reward = load_reward(name, device, config.paths.get(name), frame_settings, **settings)
        if config.cache:
            reward = CachedReward(reward, config.cache, int(config.cache_limit * GB))
        critics[name] = reward, weights
    return Panel(critics, config.combine, config.normalise, config.margins)
