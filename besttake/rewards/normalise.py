"""Score normalisation: within the candidates of each prompt, or by running mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-4
"""Added to the standard deviation before dividing, as in Flow-GRPO: equal scores stay equal."""

MAX_COUNT = 1024
"""Largest count of the running statistics: beyond this many videos, old ones decay exponentially."""


def within_prompts(
    values: Float[Tensor, "b d"], prompts: Sequence[str], scored: Bool[Tensor, "b"]
) -> Float[Tensor, "b d"]:
    """Normalise each column to mean 0 and deviation 1 within the candidates of each prompt; a single one becomes 0.

    Args:
        scored: mask of rows with a score; the other rows become 0.
    """
    result = torch.zeros_like(values)
    for prompt in dict.fromkeys(prompts):
        rows = torch.tensor([other == prompt for other in prompts], device=values.device) & scored
        if rows.any():
            rows_of_prompt = values[rows]
            rows_of_prompt = rows_of_prompt - rows_of_prompt.mean(0)
            result = result.index_put((rows,), rows_of_prompt / (rows_of_prompt.square().mean(0).sqrt() + EPSILON))
    return result


class RunningNormaliser:
    """Running mean and standard deviation (Chan, Golub and LeVeque 1979, equation 2.1), in float64.

    Attributes:
        count: rows seen, at most `MAX_COUNT`, so that the statistics follow the scores of an improving policy.
        mean, square: mean and (population) variance of each column.
    """

    def __init__(self, columns: int):
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros(columns, dtype=torch.float64)
        self.square = torch.zeros(columns, dtype=torch.float64)

    def __call__(self, values: Float[Tensor, "b d"], scored: Bool[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """Update with the scored rows, then normalise all rows."""
        self._update(values[scored].detach().double().cpu())
        deviation = self.square.sqrt().to(values) + EPSILON
        return (values - self.mean.to(values)) / deviation

    def _update(self, new: Float[Tensor, "b d"]) -> None:
        if not len(new):
            return
        total = self.count + len(new)
        shift = new.mean(0) - self.mean
        self.square = (self.count * self.square + len(new) * new.var(0, correction=0)) / total
        self.square = self.square + shift.square() * self.count * len(new) / total**2
        self.mean = self.mean + shift * len(new) / total
        self.count = total.clamp(max=MAX_COUNT)
