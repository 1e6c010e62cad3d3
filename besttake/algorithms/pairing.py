"""From scored takes to preference pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from besttake.algorithms.losses import Clips
from besttake.rollout import Rollout
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
    takes: Rollout, scores: Float[Tensor, "bn"], margin: float = 0.0
) -> tuple[Pairs, dict[str, float]]:
    """The best take of each prompt against its worst (OnlineVPO, section 3.2).

    A prompt whose takes differ by no more than `margin` teaches nothing: its pair is dropped, and counted.

    Args:
        scores: one number per take, higher is better.

    Returns:
        The pairs that are left, and how many prompts were dropped as ties, and below the margin.
    """
    table = scores.float().view(-1, takes.n)
    spread = table.amax(1) - table.amin(1)
    kept = (spread > margin).nonzero()[:, 0]
    first = kept * takes.n
    rows = torch.stack([first + table[kept].argmax(1), first + table[kept].argmin(1)], 1)
    counts = {
        "ties": (spread == 0).sum().item(),
        "below_margin": ((spread > 0) & (spread <= margin)).sum().item(),
        "score_spread": spread.mean().item(),
    }
    return Pairs(
        takes.latents[rows], {name: value[first] for name, value in takes.condition.items()}, spread[kept]
    ), counts
