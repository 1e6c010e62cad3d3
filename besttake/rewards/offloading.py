"""Critics that take turns with the model: while nobody asks them, their networks wait on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from besttake.types import Reward

_homes: WeakKeyDictionary[nn.Module, torch.device] = WeakKeyDictionary()
"""The devices of networks that wait on the CPU."""


def offload_reward(reward: Reward) -> None:
    """Let a critic's networks wait on the CPU from now on."""
    for network in _networks(reward):
        weight = next(network.parameters(), None)
        if weight is not None:
            _homes.setdefault(network, weight.device)
            network.to("cpu")


@contextmanager
def on_device(reward: Reward) -> Iterator[None]:
    """Within this context a critic's networks are on their device, if they have been sent away."""
    waiting = {network: _homes[network] for network in _networks(reward) if network in _homes}
    try:
        for network, home in waiting.items():
            network.to(home)
        yield
    finally:
        for network in waiting:
            network.to("cpu")


def _networks(reward: Any) -> list[nn.Module]:
    """A critic's networks, or those of the critic that it is around."""
    if isinstance(reward, nn.Module):
        return [reward]
    inside = [part for part in vars(reward).values() if isinstance(part, nn.Module)]
    return inside + (_networks(reward.reward) if hasattr(reward, "reward") else [])
