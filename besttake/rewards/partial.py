"""Partial scores: a critic may abstain on some videos."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from besttake.types import Score


@dataclass(frozen=True)
class PartialScore(Score):
    """Scores of `b` videos by a critic that abstained on some of them.

    Attributes:
        scored: which videos have a score; the other rows of `values` are 0 and must be ignored.
    """

    scored: Bool[Tensor, "b"]


def scored_mask(score: Score) -> Bool[Tensor, "b"]:
    """Mask of the videos that have a score: all True unless the critic abstained."""
    if isinstance(score, PartialScore):
        return score.scored.to(score.values.device)
    return torch.ones(len(score.values), dtype=torch.bool, device=score.values.device)
