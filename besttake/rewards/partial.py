"""Scores with holes: a critic may abstain, and an abstention is no number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from besttake.types import Score


@dataclass(frozen=True)
class PartialScore(Score):
    """What a critic says of `b` videos when it would not score all of them.

    Attributes:
        given: which videos have a score. The other rows of `values` are 0 and mean nothing: whoever reads `values`
            reads `given` first.
    """

    scored: Bool[Tensor, "b"]


def scored_mask(score: Score) -> Bool[Tensor, "b"]:
    """Which videos have a score: all of them, unless the critic abstained."""
    if isinstance(score, PartialScore):
        return score.scored.to(score.values.device)
    return torch.ones(len(score.values), dtype=torch.bool, device=score.values.device)
