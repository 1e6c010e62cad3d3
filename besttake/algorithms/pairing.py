"""From scored takes to preference pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from besttake.algorithms.losses import Clips
from besttake.rewards.panel import Ballots, agreed
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
    takes: Rollout, scores: Float[Tensor, "bn"] | Ballots, margin: float = 0.0
) -> tuple[Pairs, dict[str, float]]:
    """The best take of each prompt against its worst (OnlineVPO, section 3.2).

    A prompt whose takes differ by no more than `margin` teaches nothing: its pair is dropped, and counted. Where
    critics vote, the pair is that of the takes that all of them order alike, and by the most; a prompt without one
    is counted as below the margin. Takes without a score are left out.

    Args:
        scores: one number per take, higher is better; or a vote of several critics, which may abstain.
        margin: of a single voter; those who vote have their own.

    Returns:
        The pairs that are left, and how many prompts were dropped as ties, and below the margin.
    """
    ballots = scores if isinstance(scores, Ballots) else Ballots.of(scores)
    tables = ballots.votes.float().T.reshape(-1, len(ballots.votes) // takes.n, takes.n)  # (voters, prompts, takes)
    margins = ballots.margins.clamp(min=margin) if len(tables) == 1 else ballots.margins
    found = agreed(tables, margins, ballots.given.view(-1, takes.n))
    first = found.kept * takes.n
    rows = torch.stack([first + found.winner, first + found.loser], 1)
    ties = found.unseen.sum().item()
    counts = {
        "ties": ties,
        "below_margin": len(found.spread) - len(found.kept) - ties,
        "score_spread": found.spread.mean().item(),
    }
    return Pairs(
        takes.latents[rows], {name: value[first] for name, value in takes.condition.items()}, found.margin
    ), counts


def extremes(ballots: Ballots, n: int, kept: int) -> Int[Tensor, "p k"]:
    """The takes of each prompt, `kept` of `n`, that look best and worst; those without a score lie in the middle.

    Where critics vote, a take's rank is the mean of its ranks.
    """
    ranks = ballots.votes.view(-1, n, ballots.votes.shape[1]).argsort(1).argsort(1).float().mean(2)
    ranks = torch.where(ballots.given.view(-1, n), ranks, (n - 1) / 2)
    order = ranks.argsort(1)
    return torch.cat([order[:, : kept // 2], order[:, n - (kept + 1) // 2 :]], 1)
