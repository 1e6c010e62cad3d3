"""Ranking metrics: how well scores predict human preferences.

Treatment of ties:
    equal scores, in rank metrics (recall, MRR): the mean over all orders of the equal ones (McSherry and Najork 2008),
        so that an uninformative critic is at chance level.
    human ties: excluded from the plain accuracy; in the accuracy with ties, a critic is right if it ties too.
    equal scores, in accuracies: wrong if people preferred one, as in VideoAlign (Liu et al. 2025) and, for the accuracy
        with ties, Deutsch et al. 2023.

Confidence intervals are percentile bootstraps (Efron 1979) over prompts, not over votes, since the votes of one prompt
are correlated.
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
"""A number as a function of bootstrap weights (n,) of the prompts; NaN if it is not defined, such as without votes."""


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def rank_probabilities(scores: Sequence[float], best: Sequence[int]) -> list[tuple[int, float]]:
    """Possible ranks (from 1) of the first preferred candidate by descending score, with their probabilities.

    Args:
        scores: scores of n candidates.
        best: indices of the r preferred ones.

    Raises:
        ValueError: a score is not finite, or `best` is empty.
    """
    values = np.asarray(scores, float)
    require(bool(np.isfinite(values).all()), "scores", list(scores), "finite numbers")
    require(bool(best), "best", list(best), "one index or more")
    top = values[list(best)].max()
    above, equal = int((values > top).sum()), int((values == top).sum())
    r = int((values[list(best)] == top).sum())
    return [(above + j, comb(equal - j, r - 1) / comb(equal, r)) for j in range(1, equal - r + 2)]


def recall(scores: Sequence[float], best: Sequence[int], k: int = 1) -> float:
    """Recall@k: the probability that a preferred candidate is among the k highest scores."""
    return sum(chance for rank, chance in rank_probabilities(scores, best) if rank <= k)


def reciprocal_rank(scores: Sequence[float], best: Sequence[int]) -> float:
    """Reciprocal rank of the first preferred candidate; its mean over prompts is the MRR."""
    return sum(chance / rank for rank, chance in rank_probabilities(scores, best))


def compared_pairs(scores: Sequence[float], best: Sequence[int]) -> Float[ndarray, "p 2"]:
    """All compared pairs: column 0 is 1 if people preferred the first, 0 for a tie; column 1 is the score difference.

    A best candidate is preferred to each that is not; two best ones tie; the others were not compared.
    """
    rest = [i for i in range(len(scores)) if i not in best]
    rows = [(1.0, scores[i] - scores[j]) for i in best for j in rest]
    rows += [(0.0, scores[i] - scores[j]) for i in best for j in best if i < j]
    return np.array(rows, float).reshape(-1, 2)


def accuracy(pairs: Float[ndarray, "p 2"], weights: Float[ndarray, "p"] | None = None) -> float:
    """The fraction of pairs whose preferred candidate scores higher, without human ties; equal scores are wrong.

    Called "without ties" in VideoAlign's benchmark. NaN if there is no such pair.
    """
    weights = np.ones(len(pairs)) if weights is None else weights
    counted = weights * (pairs[:, 0] != 0)
    return _ratio((counted * (pairs[:, 0] * pairs[:, 1] > 0)).sum(), counted.sum())


def accuracy_with_ties(pairs: Float[ndarray, "p 2"], weights: Float[ndarray, "p"] | None = None) -> tuple[float, float]:
    """The fraction of pairs, ties included, on which critic and people agree; and the tie threshold.

    Score differences up to the threshold count as ties of the critic. The threshold is optimised on the same votes
    (tie calibration, Deutsch et al. 2023, section 5), so the value is slightly optimistic.
    """
    if not len(pairs):
        return float("nan"), 0.0
    weights = np.ones(len(pairs)) if weights is None else weights
    gap = np.abs(pairs[:, 1])
    order = np.argsort(gap, kind="stable")
    gap, weights, human, critic = gap[order], weights[order], pairs[order, 0], pairs[order, 1]
    right = np.cumsum(weights * (human * critic > 0))
    tied = np.cumsum(weights * (human == 0))
    agreed = tied + right[-1] - right  # for a threshold at each gap
    last = np.append(np.diff(gap) > 0, True)  # equal gaps tie together
    thresholds, agreed = gap[last], agreed[last]
    if gap[0] > 0:
        thresholds, agreed = np.append(0.0, thresholds), np.append(right[-1], agreed)
    chosen = int(agreed.argmax())
    return _ratio(agreed[chosen], weights.sum()), float(thresholds[chosen])


def kendall_tau_b(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings, in [-1, 1] (Kendall 1945); 0 if one of them is all ties.

    Raises:
        ValueError: they differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} numbers; expected equally many")
    upper = np.triu_indices(len(a), 1)
    first, second = (np.sign(np.subtract.outer(x, x))[upper] for x in (np.asarray(a, float), np.asarray(b, float)))
    untied = np.abs(first).sum() * np.abs(second).sum()
    return float((first * second).sum() / np.sqrt(untied)) if untied else 0.0


def ratio(sums: Float[ndarray, "n"], counts: Float[ndarray, "n"]) -> Statistic:
    """The weighted mean over prompts: sums over counts."""
    return lambda weights: _ratio(weights @ sums, weights @ counts)


def bootstrap(statistic: Statistic, n: int, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """A statistic of n prompts with its percentile bootstrap interval at confidence `level`.

    The bootstrap samples depend only on n, `n_resamples` and `seed`, so that critics are compared on the same samples.
    """
    values = np.array([statistic(weights) for weights in resamples(n, n_resamples, seed)])
    values = values[np.isfinite(values)]
    value = statistic(np.ones(n))
    if not len(values):
        return Interval(value, value, value)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def paired_bootstrap(
    first: Statistic, second: Statistic, n: int, n_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The difference of two statistics on the same bootstrap samples (Koehn 2004).

    They differ significantly if the interval excludes 0, even if their own intervals overlap.
    """
    return bootstrap(lambda weights: first(weights) - second(weights), n, n_resamples, seed, level)


def resamples(n: int, n_resamples: int, seed: int) -> Float[ndarray, "n_resamples n"]:
    """Bootstrap weights: how often each of n prompts occurs in each sample of n.

    Raises:
        ValueError: `n` or `n_resamples` is below 1.
    """
    require(n >= 1, "n", n, "1 or more")
    require(n_resamples >= 1, "n_resamples", n_resamples, "1 or more")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
