"""Detection of reward hacking: the training critic's scores rise while those of held-out critics fall.

The rule, for each held-out series over the last validation passes: it falls (one-sided Mann-Kendall test) by more than
a fraction of the critic's range (Theil-Sen slope), and the training reward rises over the whole window (same test).
Rank tests are robust to outliers; the test's variance is corrected for autocorrelation, and its level for the number of
series (Bonferroni). OnlineVPO (arXiv 2412.15159) reports a dynamic degree that falls while the reward rises.

Measured on simulated runs of 50 validation passes with a rising reward, three held-out critics and `least` 0: 5 % of
the runs raise a false alarm where the critics are white noise, 31 % where that noise has an autocorrelation of .5. A
critic that starts to fall by one standard deviation of its noise per pass is detected in all runs, nine passes later.
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
"""Metric name of the training reward, logged at every step."""

MIN_POINTS = 4
"""Fewest validation passes from which a trend is estimated."""

MAX_POINTS = 50
"""The per-step rewards of a window are averaged into at most this many points: neighbouring steps are correlated."""

Points = Sequence[tuple[float, float]]
"""(step, value) pairs in the order of the steps."""


@dataclass(frozen=True)
class GuardConfig:
    """When to report reward hacking."""

    critics: tuple[str, ...] = ()
    """Validation critics to monitor; default: all that are not trained on."""
    window: int = 16
    """Number of validation passes tested for a trend (and half as many); about eight are needed to detect anything."""
    chance: float = 0.01
    """False-alarm probability of one validation pass, over all critics."""
    least: float = 0.02
    """Smallest drop that counts, as a fraction of the critic's range."""
    stop: bool = False
    """Stop the run with a checkpoint at an alarm; rerun the command with `stop` off to continue."""

    def __post_init__(self):
        if self.window < MIN_POINTS:
            raise ValueError(f"window is {self.window}; expected {MIN_POINTS} validation passes or more")
        require(0 < self.chance < 0.5, "chance", self.chance, "a probability between 0 and 0.5")
        require(0 <= self.least < 1, "least", self.least, "a fraction of a critic's range, in [0, 1)")


@dataclass(frozen=True)
class Trend:
    """The trend of a series.

    Attributes:
        slope: change per step: the median of the slopes between all pairs of points (Theil 1950; Sen 1968).
        rising, falling: one-sided p-values of a rise and of a fall.
    """

    slope: float
    rising: float
    falling: float


@dataclass(frozen=True)
class Alarm:
    """A held-out metric that fell while the training reward rose.

    Attributes:
        step: step of the last validation pass.
        since: step of the first validation pass in the window.
        rise, fall: change of the reward and of the metric from `since` to `step`, by their slopes.
        chance: p-value of the fall.
    """

    name: str
    step: int
    since: int
    rise: float
    fall: float
    chance: float

    def __str__(self) -> str:
        return (
            f"from step {self.since} to {self.step} the training reward rose by {self.rise:.3g} while {self.name} fell "
            f"by {self.fall:.3g} (p = {self.chance:.1g}): possible reward hacking"
        )


def trend(points: Points) -> Trend:
    """Theil-Sen slope and Mann-Kendall test (Mann 1945; Kendall 1975) of two or more points.

    The variance accounts for ties. If the detrended series has autocorrelation r > 0, the variance is multiplied by
    (1 + r) / (1 - r) (Yue and Wang 2004).
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
    # S changes in steps of 2; half a step is the continuity correction
    return Trend(slope, _upper_tail((s - 1) / z), _upper_tail((-s - 1) / z))


def detect_hacking(
    reward: Points,
    metrics: Mapping[str, Points],
    config: GuardConfig,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> list[Alarm]:
    """Alarms for metrics that fell over the last `config.window` points, or half as many, while the reward rose.

    Args:
        reward: training reward by step.
        metrics: held-out metrics, each with one point per validation pass.
        ranges: (lowest, highest) value of each metric; without a range any significant fall counts.
    """
    alarms = []
    for name, points in metrics.items():
        low, high = (ranges or {}).get(name, (0.0, 0.0))
        windows = [points[-n:] for n in (config.window // 2, config.window)]
        falls = [_falling_trend(window) for window in windows if len(window) >= MIN_POINTS]
        falls = [fall for fall in falls if fall.fall >= config.least * (high - low)]
        alarm = min(falls, key=lambda fall: fall.chance, default=None)
        if alarm is None or alarm.chance >= config.chance / (len(windows) * len(metrics)):
            continue
        steps = thinned([(step, value) for step, value in reward if windows[-1][0][0] <= step <= alarm.step])
        rise = trend(steps) if len(steps) >= MIN_POINTS else None
        if rise and rise.rising < config.chance:
            alarms.append(replace(alarm, name=name, rise=rise.slope * (alarm.step - alarm.since)))
    return alarms


def _falling_trend(points: Points) -> Alarm:
    """The fall of a series, regardless of the reward."""
    since, step = int(points[0][0]), int(points[-1][0])
    falling = trend(points)
    return Alarm("", step, since, 0.0, -falling.slope * (step - since), falling.falling)


class RewardHackingGuard:
    """Observes every logged row of a run and reports reward hacking.

    Its state follows from the rows of `metrics.jsonl`: a resumed run passes the old rows again.
    """

    def __init__(self, config: GuardConfig, ranges: Mapping[str, tuple[float, float]]):
        """
        Args:
            ranges: metric name -> (lowest, highest) value of each metric to monitor; see `guarded_metrics`.
        """
        self.config, self.ranges = config, ranges
        self._reward: list[tuple[float, float]] = []
        self._points: dict[str, list[tuple[float, float]]] = {name: [] for name in ranges}
        self._last_alarm: dict[str, int] = {}

    def observe(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Add a logged row; returns new alarms, one per fall of a metric."""
        if REWARD in row and math.isfinite(row[REWARD]):
            self._reward.append((row["step"], row[REWARD]))
        logged = [name for name in self.ranges if name in row]
        for name in logged:
            points = self._points[name]
            if not points or points[-1][0] < row["step"]:  # a resumed run may repeat its last validation
                points.append((row["step"], row[name]))
        if not logged:
            return []
        alarms = detect_hacking(self._reward, self._points, self.config, self.ranges)
        new = [alarm for alarm in alarms if alarm.since >= self._last_alarm.get(alarm.name, alarm.since)]
        self._last_alarm |= {alarm.name: alarm.step for alarm in new}
        return new


def guarded_metrics(
    rewards: Sequence[Reward], trained: Sequence[str], config: GuardConfig
) -> dict[str, tuple[float, float]]:
    """The metrics to monitor, with their ranges: those of validation critics that are not trained on.

    Raises:
        ValueError: `config.critics` names a critic that is not a validation critic, or that is trained on.
    """
    held_out = [reward.name for reward in rewards if reward.name not in trained]
    for name in config.critics:
        if name not in held_out:
            raise ValueError(
                f"guard.critics names {name!r}; expected critics of validation.rewards that are not trained on: "
                f"{', '.join(held_out) or 'none'}"
            )
    chosen = config.critics or held_out
    return {
        f"eval/{reward.name}/{dimension}": reward.card.ranges[dimension]
        for reward in rewards
        if reward.name in chosen
        for dimension in reward.dimensions
    }


def thinned(points: Points, most: int = MAX_POINTS) -> Points:
    """Reduce a series to at most `most` points by averaging segments of about equal length."""
    if len(points) <= most:
        return points
    parts = np.array_split(np.array(points, dtype=float), most)
    return [(float(step), float(value)) for step, value in (part.mean(0) for part in parts)]


def _pairs_weight(n: Any) -> Any:
    return n * (n - 1.0) * (2 * n + 5)


def _autocorrelation(values: np.ndarray) -> float:
    """Lag-1 autocorrelation, clamped to [0, .9]; from ten values on corrected for its bias -(1 + 4 r) / n."""
    centred, n = values - values.mean(), len(values)
    power = float((centred**2).sum())
    if power <= 1e-18 * float((values**2).sum()):  # only rounding errors
        return 0.0
    r = float((centred[1:] * centred[:-1]).sum()) / power
    return min(max((r * n + 1) / (n - 4) if n >= 10 else r, 0.0), 0.9)


def _upper_tail(z: float) -> float:
    """P(Z > z) of a standard normal variable."""
    return 0.5 * math.erfc(z / math.sqrt(2))
