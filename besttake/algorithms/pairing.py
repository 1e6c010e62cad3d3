"""Preference pairs of scored candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from besttake.algorithms.losses import Clips
from besttake.rewards.normalise import EPSILON
from besttake.rewards.panel import PanelScores
from besttake.sampling.rollout import Rollout
from besttake.types import Condition


@dataclass(frozen=True)
class Pairs:
    """Winners and losers as latents, with the condition and the score margin of each row."""

    clips: Clips
    condition: Condition
    margin: Float[Tensor, "b"]

    def __len__(self) -> int:
        return len(self.clips)


def best_against_worst(
    candidates: Rollout, scores: Float[Tensor, "bn"] | PanelScores, margin: float = 0.0
) -> tuple[Pairs, dict[str, float]]:
    """The best candidate of each prompt against its worst (OnlineVPO, section 3.2).

    A pair whose scores differ by no more than `margin` is dropped and counted. If several critics vote, the pair is the
    one that all of them order the same way, with the largest difference; a prompt without such a pair is counted as
    below the margin. Candidates without a score are ignored.

    Args:
        scores: one number per candidate, higher is better; or the scores of several critics that vote and may abstain.
        margin: for a single critic; critics that vote have their own.

    Returns:
        The pairs, and how many prompts were dropped as ties or below the margin.
    """
    scores = scores if isinstance(scores, PanelScores) else PanelScores.of(scores)
    tables = scores.values.float().T.reshape(-1, len(scores.values) // candidates.n, candidates.n)  # (voters, p, n)
    margins = scores.margins.clamp(min=margin) if len(tables) == 1 else scores.margins
    found = best_pairs(tables, margins, scores.scored.view(-1, candidates.n))
    first = found.kept * candidates.n
    rows = torch.stack([first + found.winner, first + found.loser], 1)
    ties = found.tied.sum().item()
    counts = {
        "pairs/ties": ties,
        "pairs/below_margin": len(found.spread) - len(found.kept) - ties,
        "pairs/score_spread": found.spread.mean().item(),
    }
    return Pairs(
        candidates.latents[rows], {name: value[first] for name, value in candidates.condition.items()}, found.margin
    ), counts


@dataclass(frozen=True)
class BestPairs:
    """The best pair of candidates of each of `p` prompts: all voters agree on its order, and the difference is largest.

    Attributes:
        kept: indices of the prompts that have a pair.
        winner, loser: indices of the candidates, for the kept prompts.
        margin: for the kept prompts: the score difference of a single voter; for several, the mean of their
            differences, each divided by its standard deviation among the prompt's candidates.
        spread: (p,) largest difference among the candidates, averaged over voters.
        tied: prompts whose candidates all have equal scores, or with fewer than two scored candidates.
    """

    kept: Int[Tensor, "m"]
    winner: Int[Tensor, "m"]
    loser: Int[Tensor, "m"]
    margin: Float[Tensor, "m"]
    spread: Float[Tensor, "p"]
    tied: Bool[Tensor, "p"]


def best_pairs(tables: Float[Tensor, "k p n"], margins: Float[Tensor, "k"], scored: Bool[Tensor, "p n"]) -> BestPairs:
    """Find the best pair of each prompt. With a single voter, it is the best candidate against the worst.

    Args:
        tables: score of each voter, prompt and candidate; higher is better.
        margins: differences up to which a voter has no preference.
        scored: candidates with a score; the others are never paired.
    """
    n = tables.shape[2]
    both = scored[:, :, None] & scored[:, None, :]
    difference = torch.where(both, tables[:, :, :, None] - tables[:, :, None, :], 0)  # (k, p, winner, loser)
    strength = difference[0] if len(tables) == 1 else (difference / _deviation(tables, scored)[..., None, None]).mean(0)
    voted = both & (difference > margins[:, None, None, None]).all(0)
    best, index = torch.where(voted, strength, -torch.inf).flatten(1).max(1)
    kept = voted.flatten(1).any(1).nonzero()[:, 0]
    spreads = difference.flatten(2).amax(2)
    return BestPairs(kept, index[kept] // n, index[kept] % n, best[kept], spreads.mean(0), (spreads == 0).all(0))


def _deviation(tables: Float[Tensor, "k p n"], scored: Bool[Tensor, "p n"]) -> Float[Tensor, "k p"]:
    count = scored.sum(1).clamp(min=1)
    mean = torch.where(scored, tables, 0).sum(2) / count
    return (torch.where(scored, tables - mean[..., None], 0).square().sum(2) / count).sqrt() + EPSILON
