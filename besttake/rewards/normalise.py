"""Scores brought to one scale: among the candidates of a prompt, or by their running mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-4
"""Added to a deviation that is divided by, as Flow-GRPO does: candidates that score alike stay alike."""

MEMORY = 1024
"""Videos after which the running mean and deviation begin to forget the oldest."""


def within_prompts(
    values: Float[Tensor, "b d"], prompts: Sequence[str], scored: Bool[Tensor, "b"]
) -> Float[Tensor, "b d"]:
    """Every column to mean 0 and deviation 1 among the candidates of each prompt; a candidate alone becomes 0.

    Args:
        scored: rows that count; the others become 0.
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
    """Mean and deviation of everything that went by: Chan, Golub and LeVeque 1979, equation 2.1, in float64.

    Attributes:
        count: rows seen, at most `MEMORY`: so the mean follows critics' scores as the policy gets better.
        mean, square: of each column; `square` is the mean squared distance from the mean.
    """

    def __init__(self, columns: int):
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros(columns, dtype=torch.float64)
        self.square = torch.zeros(columns, dtype=torch.float64)

    def __call__(self, values: Float[Tensor, "b d"], scored: Bool[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """Take the rows that are there into account, then normalise by all that was seen."""
        self._see(values[scored].detach().double().cpu())
        deviation = self.square.sqrt().to(values) + EPSILON
        return (values - self.mean.to(values)) / deviation

    def _see(self, new: Float[Tensor, "b d"]) -> None:
        if not len(new):
            return
        total = self.count + len(new)
        step = new.mean(0) - self.mean
        self.square = (self.count * self.square + len(new) * new.var(0, correction=0)) / total
        self.square = self.square + step.square() * self.count * len(new) / total**2
        self.mean = self.mean + step * len(new) / total
        self.count = total.clamp(max=MEMORY)
