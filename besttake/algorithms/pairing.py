"""From scored candidates to preference pairs."""

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
    """Winners and losers as latents, with the condition of each row and the margin by which the winner won."""

    clips: Clips
    condition: Condition
    margin: Float[Tensor, "b"]

    def __len__(self) -> int:
        return len(self.clips)


def best_against_worst(
    candidates: Rollout, scores: Float[Tensor, "bn"] | PanelScores, margin: float = 0.0
) -> tuple[Pairs, dict[str, float]]:
    """The best candidate of each prompt against its worst (OnlineVPO, section 3.2).

    A prompt whose candidates differ by no more than `margin` teaches nothing: its pair is dropped, and counted. Where
    critics vote, the pair is that of the candidates that all of them order alike, and by the most; a prompt without
    one is counted as below the margin. Candidates without a score are left out.

    Args:
        scores: one number per candidate, higher is better; or those of several critics that vote and may abstain.
        margin: of a single voter; those who vote have their own.

    Returns:
        The pairs that are left, and how many prompts were dropped as ties, and below the margin.
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
    """The pair of each of `p` prompts' candidates that all voters order alike, and by the most.

    Attributes:
        kept: which prompts have one.
        winner, loser: numbers of the candidates, of the kept prompts.
        margin: of the kept prompts: the difference in score of a single voter; of several, the mean of their
            differences, each divided by its deviation among the prompt's candidates.
        spread: (p,) largest difference that a voter sees among the candidates, the mean over voters.
        tied: which prompts have candidates between which no voter sees any difference, or fewer than two candidates.
    """

    kept: Int[Tensor, "m"]
    winner: Int[Tensor, "m"]
    loser: Int[Tensor, "m"]
    margin: Float[Tensor, "m"]
    spread: Float[Tensor, "p"]
    tied: Bool[Tensor, "p"]


def best_pairs(tables: Float[Tensor, "k p n"], margins: Float[Tensor, "k"], scored: Bool[Tensor, "p n"]) -> BestPairs:
    """Of each prompt the two candidates that every voter orders alike, and all together by the most.

    With a single voter, that is the best candidate against the worst.

    Args:
        tables: a score for each voter, prompt and candidate, higher is better.
        margins: a voter has no preference between candidates whose scores differ by no more.
        scored: candidates that have a score; the others are never paired.
    """
    n = tables.shape[2]
    both = scored[:, :, None] & scored[:, None, :]
    difference = torch.where(both, tables[:, :, :, None] - tables[:, :, None, :], 0)  # (k, p, winner, loser)
    strength = difference[0] if len(tables) == 1 else (difference / _deviation(tables, scored)[..., None, None]).mean(0)
    voted = both & (difference > margins[:, None, None, None]).all(0)
    best, place = torch.where(voted, strength, -torch.inf).flatten(1).max(1)
    kept = voted.flatten(1).any(1).nonzero()[:, 0]
    spreads = difference.flatten(2).amax(2)
    return BestPairs(kept, place[kept] // n, place[kept] % n, best[kept], spreads.mean(0), (spreads == 0).all(0))


def _deviation(tables: Float[Tensor, "k p n"], scored: Bool[Tensor, "p n"]) -> Float[Tensor, "k p"]:
    count = scored.sum(1).clamp(min=1)
    mean = torch.where(scored, tables, 0).sum(2) / count
    return (torch.where(scored, tables - mean[..., None], 0).square().sum(2) / count).sqrt() + EPSILON
