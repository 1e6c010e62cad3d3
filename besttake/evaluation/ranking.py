"""How well scores find what people liked best: numbers in, numbers out.

Ties, everywhere the same:
    of scores, where places count (recall, MRR): every order of the equals is as likely, and the mean over all of them
        is given (McSherry and Najork 2008), so a critic that says nothing is at chance.
    of people: left out of the plain accuracy; in the one with ties a critic is right to call them ties.
    of scores, in the accuracies: wrong wherever people preferred one. So do VideoAlign (Liu et al. 2025) and, for ties
        that are asked for, Deutsch et al. 2023.

Uncertainty is a percentile bootstrap (Efron 1979) over prompts, never over single votes: those of one prompt go along
with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from besttake.runtime.configuration import require

Statistic = Callable[[ndarray], float]
"""A number from how often each prompt counts, (n,); NaN where it is not defined, as of no votes at all."""


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def places(scores: Sequence[float], best: Sequence[int]) -> list[tuple[int, float]]:
    """The places from 1 that the first of the best takes may have when scores descend, and how likely each is.

    Args:
        scores: of n takes.
        best: indices of the r best.

    Raises:
        ValueError: a score is not finite, or there is no best take.
    """
    values = np.asarray(scores, float)
    require(bool(np.isfinite(values).all()), "scores", list(scores), "finite numbers")
    require(bool(best), "best", list(best), "one take or more")
    top = values[list(best)].max()
    above, equal = int((values > top).sum()), int((values == top).sum())
    r = int((values[list(best)] == top).sum())
    return [(above + j, comb(equal - j, r - 1) / comb(equal, r)) for j in range(1, equal - r + 2)]


def recall(scores: Sequence[float], best: Sequence[int], k: int = 1) -> float:
    """Recall@k: the chance that a best take is among the k highest scores."""
    return sum(chance for place, chance in places(scores, best) if place <= k)


def reciprocal_rank(scores: Sequence[float], best: Sequence[int]) -> float:
    """One over the place of the first best take; its mean over prompts is the MRR."""
    return sum(chance / place for place, chance in places(scores, best))


def comparisons(scores: Sequence[float], best: Sequence[int]) -> Float[ndarray, "p 2"]:
    """Every pair that people compared: 1 where they preferred the first or 0 for a tie, and how much higher it scored.

    A best take is preferred to each that is not; two best ones tie; the others were not compared.
    """
    rest = [i for i in range(len(scores)) if i not in best]
    rows = [(1.0, scores[i] - scores[j]) for i in best for j in rest]
    rows += [(0.0, scores[i] - scores[j]) for i in best for j in best if i < j]
    return np.array(rows, float).reshape(-1, 2)


def accuracy(pairs: Float[ndarray, "p 2"], weights: Float[ndarray, "p"] | None = None) -> float:
    """The share of pairs whose preferred take scores higher; ties of people do not count, equal scores are wrong.

    As "without ties" in VideoAlign's benchmark. NaN where there is no such pair.
    """
    weights = np.ones(len(pairs)) if weights is None else weights
    asked = weights * (pairs[:, 0] != 0)
    return _share((asked * (pairs[:, 0] * pairs[:, 1] > 0)).sum(), asked.sum())


def accuracy_with_ties(pairs: Float[ndarray, "p 2"], weights: Float[ndarray, "p"] | None = None) -> tuple[float, float]:
    """The share of pairs, ties among them, on which critic and people agree; and the threshold this takes.

    The critic calls a tie what differs by no more than the threshold. That is chosen to agree best on these very votes,
    0 or one of the differences (tie calibration, Deutsch et al. 2023, section 5), so it flatters a little.
    """
    if not len(pairs):
        return float("nan"), 0.0
    weights = np.ones(len(pairs)) if weights is None else weights
    gap = np.abs(pairs[:, 1])
    order = np.argsort(gap, kind="stable")
    gap, weights, human, critic = gap[order], weights[order], pairs[order, 0], pairs[order, 1]
    right = np.cumsum(weights * (human * critic > 0))
    tied = np.cumsum(weights * (human == 0))
    agreed = tied + right[-1] - right  # of a threshold at each gap
    last = np.append(np.diff(gap) > 0, True)  # equal gaps tie together
    thresholds, agreed = gap[last], agreed[last]
    if gap[0] > 0:
        thresholds, agreed = np.append(0.0, thresholds), np.append(right[-1], agreed)
    chosen = int(agreed.argmax())
    return _share(agreed[chosen], weights.sum()), float(thresholds[chosen])


def kendall_tau_b(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings, in [-1, 1] (Kendall 1945); 0 where one of them is all ties, and so says nothing.

    Raises:
        ValueError: they differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} numbers; expected one of each for every take")
    upper = np.triu_indices(len(a), 1)
    first, second = (np.sign(np.subtract.outer(x, x))[upper] for x in (np.asarray(a, float), np.asarray(b, float)))
    untied = np.abs(first).sum() * np.abs(second).sum()
    return float((first * second).sum() / np.sqrt(untied)) if untied else 0.0


def ratio(sums: Float[ndarray, "n"], counts: Float[ndarray, "n"]) -> Statistic:
    """The mean of what each prompt adds up to, over how many it adds up."""
    return lambda weights: _share(weights @ sums, weights @ counts)


def bootstrap(statistic: Statistic, n: int, draws: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """A statistic of n prompts, and where it lies in that share of the draws of n prompts with replacement.

    The draws depend on n, their number and the seed alone: two critics are seen on the same ones.
    """
    drawn = np.array([statistic(weights) for weights in resamples(n, draws, seed)])
    drawn = drawn[np.isfinite(drawn)]
    value = statistic(np.ones(n))
    if not len(drawn):
        return Interval(value, value, value)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def paired_bootstrap(
    first: Statistic, second: Statistic, n: int, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """How much higher the first statistic is, both on the same draws of prompts (Koehn 2004).

    An interval without 0 tells the two apart, also where their own intervals overlap.
    """
    return bootstrap(lambda weights: first(weights) - second(weights), n, draws, seed, level)


def resamples(n: int, draws: int, seed: int) -> Float[ndarray, "draws n"]:
    """How often each of n prompts is in each draw of n.

    Raises:
        ValueError: there is no prompt, or no draw.
    """
    require(n >= 1, "n", n, "a prompt or more")
    require(draws >= 1, "draws", draws, "1 or more")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(float)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
