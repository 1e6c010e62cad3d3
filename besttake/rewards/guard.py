"""A look-out for reward hacking: the critic that is trained on rises while critics that only watch fall.

The rule, for each series that watches, over the last looks at the policy: it falls (Mann-Kendall test, one-sided), by
more than a share of the critic's range (Theil-Sen slope), and the trained reward rises over the whole window (the same
test). Ranks know no outliers; the test's variance is widened where neighbours resemble each other; the level is shared
among all that watch. OnlineVPO (arXiv 2412.15159) reports a dynamic degree that falls while the reward rises.

Measured on runs of 50 looks whose reward rises, with three critics that watch and no `least`: 5 % of those where the
critics are nothing but noise raise an alarm, 31 % where that noise has an autocorrelation of .5. A critic that begins
to fall by the deviation of its noise at each look is found in all runs, nine looks later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from besttake.runtime.configuration import require
from besttake.types import Reward

REWARD = "reward/mean"
"""What algorithms log the trained reward under, at every step."""

FEWEST = 4
"""Looks without which nothing is a trend."""

MOST = 50
"""Means that the rewards of a window's steps are taken together to: neighbouring steps are no independent witnesses."""

Points = Sequence[tuple[float, float]]
"""(step, value), in the order of the steps."""


@dataclass(frozen=True)
class GuardConfig:
    """When a run is held to please its critic rather than to get better."""

    watch: tuple[str, ...] = ()
    """Critics of the monitor that watch; none = all of them that are not trained on."""
    window: int = 16
    """The last looks, in which a trend is sought, and in half as many; about eight are needed to tell anything."""
    chance: float = 0.01
    """How often noise may look like a fall at a look, all critics together."""
    least: float = 0.02
    """A fall below this share of the critic's range is let pass, however sure it is."""
    stop: bool = False
    """End the run at an alarm, with a checkpoint; the same command with `stop` off goes on."""

    def __post_init__(self):
        if self.window < FEWEST:
            raise ValueError(f"window is {self.window}; no trend is to be seen in fewer than {FEWEST} looks")
        require(0 < self.chance < 0.5, "chance", self.chance, "a probability above 0 and below a half")
        require(0 <= self.least < 1, "least", self.least, "a share of a critic's range, in [0, 1)")


@dataclass(frozen=True)
class Trend:
    """How a series moves.

    Attributes:
        slope: per step, the median of the slopes between all pairs of points (Theil 1950; Sen 1968).
        rising, falling: the chance that noise without a trend rises, or falls, as clearly.
    """

    slope: float
    rising: float
    falling: float


@dataclass(frozen=True)
class Alarm:
    """A watching critic that fell while the trained reward rose.

    Attributes:
        step: of the last look.
        since: step of the first look of the window.
        rise, fall: by how much from `since` to `step`; the rise at its rate over the whole window.
        chance: that noise falls as clearly.
    """

    name: str
    step: int
    since: int
    rise: float
    fall: float
    chance: float

    def __str__(self) -> str:
        return (
            f"from step {self.since} to {self.step} the trained reward rose by {self.rise:.3g} while {self.name} fell "
            f"by {self.fall:.3g} (chance: {self.chance:.1g}): the policy may be learning to please its critic"
        )


def trend(points: Points) -> Trend:
    """The Theil-Sen slope and the Mann-Kendall test (Mann 1945; Kendall 1975) of two points or more.

    Ties are counted in the variance. Where what is left of neighbours after the slope resembles one another, with
    autocorrelation r > 0, the variance is taken (1 + r) / (1 - r) times (Yue and Wang 2004).
    """
    steps, values = np.array(points, dtype=float).T
    n = len(values)
    later = np.triu_indices(n, 1)
    differences, distances = values[later[1]] - values[later[0]], steps[later[1]] - steps[later[0]]
    slope = float(np.median(differences / distances))
    s = np.sign(differences).sum()
    counts = np.unique(values, return_counts=True)[1]
    variance = (_pairs_weight(n) - _pairs_weight(counts).sum()) / 18
    if variance <= 0:
        return Trend(slope, 1.0, 1.0)
    r = _autocorrelation(values - slope * steps)
    z = math.sqrt(variance * (1 + r) / (1 - r))
    # a step of S from one order to the next is 2: half of it is the correction for continuity
    return Trend(slope, _above((s - 1) / z), _above((-s - 1) / z))


def looks_hacked(
    reward: Points,
    watching: Mapping[str, Points],
    config: GuardConfig,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> list[Alarm]:
    """The critics that fell, over the last `config.window` looks or half as many, while the trained reward rose.

    Args:
        reward: of the training steps.
        watching: what each critic that watches said at each look.
        ranges: of the watching critics; where one is not known, any fall counts that is no chance.
    """
    alarms = []
    for name, looks in watching.items():
        low, high = (ranges or {}).get(name, (0.0, 0.0))
        windows = [looks[-n:] for n in (config.window // 2, config.window)]
        falls = [_fall(window) for window in windows if len(window) >= FEWEST]
        falls = [fall for fall in falls if fall.fall >= config.least * (high - low)]
        fell = min(falls, key=lambda fall: fall.chance, default=None)
        if fell is None or fell.chance >= config.chance / (len(windows) * len(watching)):
            continue
        steps = thinned([(step, value) for step, value in reward if windows[-1][0][0] <= step <= fell.step])
        rose = trend(steps) if len(steps) >= FEWEST else None
        if rose and rose.rising < config.chance:
            alarms.append(replace(fell, name=name, rise=rose.slope * (fell.step - fell.since)))
    return alarms


def _fall(looks: Points) -> Alarm:
    """How a series fell, whatever the reward did."""
    since, step = int(looks[0][0]), int(looks[-1][0])
    fell = trend(looks)
    return Alarm("", step, since, 0.0, -fell.slope * (step - since), fell.falling)


class RewardHackingGuard:
    """Hears every row that a run logs, and says when it is being gamed.

    It keeps nothing that `metrics.jsonl` does not hold: a resumed run lets it hear the old rows again.
    """

    def __init__(self, config: GuardConfig, ranges: Mapping[str, tuple[float, float]]):
        """
        Args:
            ranges: of the columns that watch; see `watching`.
        """
        self.config, self.ranges = config, ranges
        self._reward: list[tuple[float, float]] = []
        self._looks: dict[str, list[tuple[float, float]]] = {name: [] for name in ranges}
        self._rung: dict[str, int] = {}

    def observe(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Take a row into account; the alarms that a look raises, for each fall of a critic once."""
        if REWARD in row and math.isfinite(row[REWARD]):
            self._reward.append((row["step"], row[REWARD]))
        seen = [name for name in self.ranges if name in row]
        for name in seen:
            looks = self._looks[name]
            if not looks or looks[-1][0] < row["step"]:  # a run that ends on a look sees it again when it goes on
                looks.append((row["step"], row[name]))
        if not seen:
            return []
        alarms = looks_hacked(self._reward, self._looks, self.config, self.ranges)
        new = [alarm for alarm in alarms if alarm.since >= self._rung.get(alarm.name, alarm.since)]
        self._rung |= {alarm.name: alarm.step for alarm in new}
        return new


def observed_rewards(
    rewards: Sequence[Reward], trained: Sequence[str], config: GuardConfig
) -> dict[str, tuple[float, float]]:
    """The columns of `metrics.jsonl` that watch, and their ranges: of the monitor's critics, those not trained on.

    Raises:
        ValueError: a critic is to watch that the monitor does not ask, or that is trained on.
    """
    there = [reward.name for reward in rewards if reward.name not in trained]
    for name in config.watch:
        if name not in there:
            raise ValueError(
                f"guard.watch names {name!r}; it must be one of validation.rewards that is not trained on: "
                f"{', '.join(there) or 'there is none'}"
            )
    chosen = config.watch or there
    return {
        f"eval/{reward.name}/{dimension}": reward.card.ranges[dimension]
        for reward in rewards
        if reward.name in chosen
        for dimension in reward.dimensions
    }


def thinned(points: Points, most: int = MOST) -> Points:
    """At most so many points: the means of as many stretches of the series, about equally long."""
    if len(points) <= most:
        return points
    parts = np.array_split(np.array(points, dtype=float), most)
    return [(float(step), float(value)) for step, value in (part.mean(0) for part in parts)]


def _pairs_weight(n: Any) -> Any:
    return n * (n - 1.0) * (2 * n + 5)


def _autocorrelation(values: np.ndarray) -> float:
    """Of neighbours, between 0 and .9; from ten values on, a short series' bias, -(1 + 4 r) / n, is off."""
    away, n = values - values.mean(), len(values)
    power = float((away**2).sum())
    if power <= 1e-18 * float((values**2).sum()):  # nothing is left but rounding
        return 0.0
    r = float((away[1:] * away[:-1]).sum()) / power
    return min(max((r * n + 1) / (n - 4) if n >= 10 else r, 0.0), 0.9)


def _above(z: float) -> float:
    """The chance that a standard normal number is larger."""
    return 0.5 * math.erfc(z / math.sqrt(2))
