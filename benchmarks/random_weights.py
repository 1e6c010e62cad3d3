"""Numbers for networks at their real size whose weights are not at hand: small, so that what they make stays finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def fill(tensors: Iterable[Tensor]) -> None:
    """Give weights random numbers; those held in fewer bits keep what they have."""
    for tensor in tensors:
        if tensor.is_floating_point() and not hasattr(tensor, "__tensor_flatten__"):
            tensor.normal_(std=0.02)


def randomise(name: str, part: nn.Module) -> None:
    """`fill`, for a part of a `skeleton`."""
    fill(part.parameters())
