"""Several critics as one: sums and products of their dimensions, normalised alike, or a vote on every pair of takes.

Critics speak on different scales: one from 1 to 5, another from .2 to .3. So a dimension can be normalised among the
takes of each prompt (as GRPO's advantages are, arXiv 2402.03300) or by its running mean and deviation. And they err in
different ways: two takes that all critics order alike, each by more than its noise, make a pair that is worth learning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from besttake.data.cache import GB
from besttake.rewards import load_reward
from besttake.rewards.cache import LIMIT, CachedReward
from besttake.rewards.checks import parse_weights, shared
from besttake.rewards.partial import given
from besttake.rewards.remote.judge import Judge, JudgeConfig
from besttake.runtime.distributed import added
from besttake.types import FPS, Reward, Video

Combine = Literal["sum", "product", "vote"]
Normalise = Literal["none", "prompt", "batch"]

LEAST = 1e-4
"""Added to a deviation that is divided by, as Flow-GRPO does: takes that score alike stay alike."""

MEMORY = 1024
"""Videos after which the running mean and deviation begin to forget the oldest."""


@dataclass(frozen=True)
class RewardConfig:
    """Which critic, or critics, rank the takes, and by what."""

    name: str = "world"
    """A critic's name, a judge's .yaml file, or the URL of a served critic (several with commas between)."""
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
class Ballots:
    """What a panel says of `b` videos.

    Attributes:
        votes: float32 (b, k), higher is better: a column for each voter; one column where critics are combined.
        given: which videos every critic has scored; rows of `votes` of the others are 0 and mean nothing.
        margins: float32 (k,): differences within it are no preference of that voter.
        said: numbers to log. "reward" is the mean of the weighted sum before it is normalised, since normalised scores
            are 0 on average however good the takes are; each of several critics has its own. "abstained" counts the
            videos without a score, where there are any; judges count answers, tokens and cost.
    """

    votes: Float[Tensor, "b k"]
    given: Bool[Tensor, "b"]
    margins: Float[Tensor, "k"]
    said: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Float[Tensor, "b"]) -> Ballots:
        """Those of a single voter who scores every video."""
        everyone = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        return cls(scores[:, None], everyone, torch.zeros(1, device=scores.device), {"reward": scores.mean().item()})


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
        self.running = {name: Running(len(weights)) for name, (_, weights) in self.critics.items()}

    @property
    def rewards(self) -> list[Reward]:
        """The critics themselves."""
        return [reward for reward, _ in self.critics.values()]

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Ballots:
        """
        Args:
            videos: of several processes, those of this one's `share` of the prompts; the ballots are of all of them.

        Raises:
            ValueError: a critic fails, or a product is taken of numbers that are not positive.
        """
        scores = {name: shared(reward, videos, prompts, fps) for name, (reward, _) in self.critics.items()}
        there = torch.stack([given(score) for score in scores.values()]).all(0)
        raw, parts = {}, []
        for name, score in scores.items():
            weights = self.critics[name][1]
            values = torch.stack([score[dimension] for dimension in weights], 1)
            raw[name] = weighted_sum(values, weights)
            parts.append(self._part(name, self._normalised(name, values, prompts, there), there))
        votes = torch.stack(parts, 1)
        if self.combine != "vote":
            votes = votes.prod(1, True) if self.combine == "product" else votes.sum(1, True)
        votes = torch.where(there[:, None], votes, 0)
        plain = self.combine == "product" and self.normalise == "none"
        reward = votes[:, 0] if plain else torch.stack(list(raw.values())).sum(0)
        return Ballots(votes, there, votes.new_tensor(self.margins), self._said(reward, raw, there))

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
        self, name: str, values: Float[Tensor, "b d"], prompts: Sequence[str], there: Bool[Tensor, "b"]
    ) -> Float[Tensor, "b d"]:
        if self.normalise == "prompt":
            return within_prompts(values, prompts, there)
        if self.normalise == "batch":
            return self.running[name](values, there)
        return values

    def _part(self, name: str, values: Float[Tensor, "b d"], there: Bool[Tensor, "b"]) -> Float[Tensor, "b"]:
        """One number of a critic's dimensions."""
        weights = self.critics[name][1]
        if self.combine != "product":
            return weighted_sum(values, weights)
        if self.normalise != "none":  # a normalised score may be negative; the share of a bell curve below it is not
            return weighted_sum(torch.special.log_ndtr(values), weights).exp()
        values = torch.where(there[:, None], values, 1)
        if (values <= 0).any():
            raise ValueError(
                f"critic {name} scored {values.min().item():g}, and a product needs numbers above 0; "
                "set reward.normalise, or combine: sum"
            )
        return weighted_sum(values.log(), weights).exp()

    def _said(
        self, reward: Float[Tensor, "b"], raw: Mapping[str, Float[Tensor, "b"]], there: Bool[Tensor, "b"]
    ) -> dict[str, float]:
        columns = {"reward": reward}
        if len(raw) > 1:
            columns |= {f"reward/{name}": column for name, column in raw.items()}
        said = {name: column[there].mean().item() for name, column in columns.items() if there.any()}
        if not there.all():
            said["abstained"] = float((~there).sum())
        for critic, _ in self.critics.values():
            said |= added(getattr(critic, "watched", dict)())
        return said


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


def within_prompts(
    values: Float[Tensor, "b d"], prompts: Sequence[str], there: Bool[Tensor, "b"]
) -> Float[Tensor, "b d"]:
    """Every column to mean 0 and deviation 1 among the takes of each prompt; a take alone becomes 0.

    Args:
        there: rows that count; the others become 0.
    """
    result = torch.zeros_like(values)
    for prompt in dict.fromkeys(prompts):
        rows = torch.tensor([told == prompt for told in prompts], device=values.device) & there
        if rows.any():
            takes = values[rows]
            takes = takes - takes.mean(0)
            result = result.index_put((rows,), takes / (takes.square().mean(0).sqrt() + LEAST))
    return result


class Running:
    """Mean and deviation of everything that went by: Chan, Golub and LeVeque 1979, equation 2.1, in float64.

    Attributes:
        count: rows seen, at most `MEMORY`: so the mean follows critics' scores as the policy gets better.
        mean, square: of each column; `square` is the mean squared distance from the mean.
    """

    def __init__(self, columns: int):
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros(columns, dtype=torch.float64)
        self.square = torch.zeros(columns, dtype=torch.float64)

    def __call__(self, values: Float[Tensor, "b d"], there: Bool[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """Take the rows that are there into account, then normalise by all that was seen."""
        self._see(values[there].detach().double().cpu())
        deviation = self.square.sqrt().to(values) + LEAST
        return (values - self.mean.to(values)) / deviation

    def _see(self, new: Float[Tensor, "b d"]) -> None:
        if not len(new):
            return
        total = self.count + len(new)
        step = new.mean(0) - self.mean
        self.square = (self.count * self.square + len(new) * new.var(0, correction=0)) / total
        self.square = self.square + step.square() * self.count * len(new) / total**2
        self.mean = self.mean + step * len(new) / total
        self.count = total.clamp(max=MEMORY)


@dataclass(frozen=True)
class Agreement:
    """The pair of each of `p` prompts' takes that all voters order alike, and by the most.

    Attributes:
        kept: which prompts have one.
        winner, loser: numbers of the takes, of the kept prompts.
        margin: of the kept prompts: the difference in score of a single voter; of several, the mean of their
            differences, each divided by its deviation among the prompt's takes.
        spread: (p,) largest difference that a voter sees among the takes, the mean over voters.
        unseen: which prompts have takes between which no voter sees any difference, or fewer than two takes.
    """

    kept: Int[Tensor, "m"]
    winner: Int[Tensor, "m"]
    loser: Int[Tensor, "m"]
    margin: Float[Tensor, "m"]
    spread: Float[Tensor, "p"]
    unseen: Bool[Tensor, "p"]


def agreed(tables: Float[Tensor, "k p n"], margins: Float[Tensor, "k"], there: Bool[Tensor, "p n"]) -> Agreement:
    """Of each prompt the two takes that every voter orders alike, and all together by the most.

    With a single voter, that is the best take against the worst.

    Args:
        tables: a score for each voter, prompt and take, higher is better.
        margins: a voter has no preference between takes whose scores differ by no more.
        there: takes that have a score; the others are never paired.
    """
    takes = tables.shape[2]
    both = there[:, :, None] & there[:, None, :]
    difference = torch.where(both, tables[:, :, :, None] - tables[:, :, None, :], 0)  # (k, p, winner, loser)
    strength = difference[0] if len(tables) == 1 else (difference / _deviation(tables, there)[..., None, None]).mean(0)
    voted = both & (difference > margins[:, None, None, None]).all(0)
    best, place = torch.where(voted, strength, -torch.inf).flatten(1).max(1)
    kept = voted.flatten(1).any(1).nonzero()[:, 0]
    spreads = difference.flatten(2).amax(2)
    return Agreement(
        kept, place[kept] // takes, place[kept] % takes, best[kept], spreads.mean(0), (spreads == 0).all(0)
    )


def _deviation(tables: Float[Tensor, "k p n"], there: Bool[Tensor, "p n"]) -> Float[Tensor, "k p"]:
    count = there.sum(1).clamp(min=1)
    mean = torch.where(there, tables, 0).sum(2) / count
    return (torch.where(there, tables - mean[..., None], 0).square().sum(2) / count).sqrt() + LEAST
