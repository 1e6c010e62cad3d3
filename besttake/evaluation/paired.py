"""Whether a number differs between two sets of clips by more than chance, clip for clip of the same prompt and noise.

A paired permutation test: were training without effect, either clip of a prompt could as well be the one "before", so
what is found is held against what comes of swapping the clips of some prompts. It takes clips of any distribution, and
any statistic of two sets: a mean, a distance to what real clips have on average, a Frechet distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float

SWAPS = 9999
"""Swaps that are tried where there are more than can be tried all; a p-value is a multiple of 1 / (SWAPS + 1)."""

LEVEL = 0.05
"""Of the measures that are called changed, a larger share than this is not expected to be chance."""


def swaps(clips: int, most: int = SWAPS) -> Bool[np.ndarray, "k n"]:
    """Which prompts' clips are swapped: every way but that of none, or `most` ways drawn at random, always the same."""
    if 2**clips - 1 <= most:
        return (np.arange(1, 2**clips)[:, None] >> np.arange(clips)) % 2 == 1
    return np.random.default_rng(0).random((most, clips)) < 0.5


def p_of_means(
    before: Float[np.ndarray, "n"], after: Float[np.ndarray, "n"], gain: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> float:
    """The chance that swapped clips differ as much as these, in how much better the mean after is than that before.

    Args:
        gain: of means before and after, each an array (k,), how much better the latter are.
    """
    other = swaps(len(before)).astype(float) @ (after - before) / len(before)
    found = gain(np.array([before.mean()]), np.array([after.mean()]))[0]
    return _share(found, gain(before.mean() + other, after.mean() - other))


def p_of_sets(before: np.ndarray, after: np.ndarray, gain: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """The same for any statistic of two sets (n, ...), which is slower: fewer swaps are tried."""
    wide = (slice(None), *[None] * (before.ndim - 1))
    tried = [
        gain(np.where(swapped[wide], after, before), np.where(swapped[wide], before, after))
        for swapped in swaps(len(before), SWAPS // 10)
    ]
    return _share(gain(before, after), np.array(tried))


def adjusted(p_values: Mapping[str, float]) -> dict[str, float]:
    """Benjamini and Hochberg's (1995) q-values: those up to `LEVEL` hold, with that share of false ones among them."""
    order = sorted(p_values, key=lambda name: p_values[name], reverse=True)
    found, least = {}, 1.0
    for place, name in enumerate(order):
        least = min(least, p_values[name] * len(order) / (len(order) - place))
        found[name] = least
    return {name: found[name] for name in p_values}


def _share(found: float, tried: np.ndarray) -> float:
    """Of all that is possible, with what was found itself; rounding is no difference."""
    least = abs(found) - 1e-9 * max(abs(found), float(np.abs(tried).max(initial=0)))
    return float((1 + (np.abs(tried) >= least).sum()) / (1 + len(tried)))
