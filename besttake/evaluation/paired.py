"""Paired permutation tests for differences between two sets of clips of the same prompts and noise.

Under the null hypothesis that training has no effect, the two clips of a prompt are exchangeable, so the observed
difference is compared with those after swapping the clips of random prompts. The test makes no assumption on the
distribution and works for any statistic of two sets: a mean, a distance to real clips, a Frechet distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float

PERMUTATIONS = 9999
"""Number of random permutations if there are too many to enumerate; p-values are multiples of 1 / (this + 1)."""

LEVEL = 0.05
"""False discovery rate: the expected fraction of false positives among the measures that are called changed."""


def swaps(clips: int, limit: int = PERMUTATIONS) -> Bool[np.ndarray, "k n"]:
    """Masks of the prompts whose clips are swapped: all except the empty one, or `limit` random ones (fixed seed)."""
    if 2**clips - 1 <= limit:
        return (np.arange(1, 2**clips)[:, None] >> np.arange(clips)) % 2 == 1
    return np.random.default_rng(0).random((limit, clips)) < 0.5


def p_value_of_means(
    before: Float[np.ndarray, "n"], after: Float[np.ndarray, "n"], gain: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> float:
    """p-value of the improvement of a mean.

    Args:
        gain: improvement as a function of the means before and after, each an array (k,).
    """
    shift = swaps(len(before)).astype(float) @ (after - before) / len(before)
    observed = gain(np.array([before.mean()]), np.array([after.mean()]))[0]
    return _p_value(observed, gain(before.mean() + shift, after.mean() - shift))


def p_value_of_sets(before: np.ndarray, after: np.ndarray, gain: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """p-value of the improvement of any statistic of two sets (n, ...); slower, so with fewer permutations."""
    expand = (slice(None), *[None] * (before.ndim - 1))
    permuted = [
        gain(np.where(swapped[expand], after, before), np.where(swapped[expand], before, after))
        for swapped in swaps(len(before), PERMUTATIONS // 10)
    ]
    return _p_value(gain(before, after), np.array(permuted))


def adjusted_p_values(p_values: Mapping[str, float]) -> dict[str, float]:
    """Benjamini-Hochberg adjusted p-values (1995), also called q-values; those up to `LEVEL` are significant."""
    order = sorted(p_values, key=lambda name: p_values[name], reverse=True)
    observed, smallest = {}, 1.0
    for rank, name in enumerate(order):
        smallest = min(smallest, p_values[name] * len(order) / (len(order) - rank))
        observed[name] = smallest
    return {name: observed[name] for name in p_values}


def _p_value(observed: float, permuted: np.ndarray) -> float:
    """Fraction of permutations at least as extreme as the observed value, which is included; tolerant to rounding."""
    smallest = abs(observed) - 1e-9 * max(abs(observed), float(np.abs(permuted).max(initial=0)))
    return float((1 + (np.abs(permuted) >= smallest).sum()) / (1 + len(permuted)))
