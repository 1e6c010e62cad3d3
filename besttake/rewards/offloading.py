"""CPU offloading of critics: their networks are on the GPU only while they score."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from besttake.types import Reward

_devices: WeakKeyDictionary[nn.Module, torch.device] = WeakKeyDictionary()
"""Original devices of offloaded networks."""


def offload_reward(reward: Reward) -> None:
    """Offload a critic's networks to the CPU; `on_device` brings them back while they are used."""
    for network in _networks(reward):
        weight = next(network.parameters(), None)
        if weight is not None:
            _devices.setdefault(network, weight.device)
            network.to("cpu")


@contextmanager
def on_device(reward: Reward) -> Iterator[None]:
    """Context in which an offloaded critic's networks are on their original device."""
    offloaded = {network: _devices[network] for network in _networks(reward) if network in _devices}
    try:
        for network, device in offloaded.items():
            network.to(device)
        yield
    finally:
        for network in offloaded:
            network.to("cpu")


def _networks(reward: Any) -> list[nn.Module]:
    """A critic's networks, including those of a critic that it wraps."""
    if isinstance(reward, nn.Module):
        return [reward]
    inside = [part for part in vars(reward).values() if isinstance(part, nn.Module)]
    return inside + (_networks(reward.reward) if hasattr(reward, "reward") else [])
