"""`policy.gradient_checkpointing: auto`: the fastest way through the backward pass that fits a card, by the plan."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import torch

from besttake.models.checkpointing import GradientCheckpointing
from besttake.plan.cards import CARDS, RESERVE
from besttake.plan.meter import Throughput
from besttake.plan.steps import training_peaks
from besttake.runtime.devices import find_device

log = logging.getLogger(__name__)

WAYS: tuple[tuple[GradientCheckpointing, int], ...] = (
    *(("none", 0), ("selective", 0), ("none", 1), ("full", 0), ("selective", 1), ("full", 1)),
)
"""Levels of checkpointing with sizes of micro-batches (0 = all clips), from the fastest to the one of least memory.

For many clips, in forward passes of a clip whose attention is half of it: 3, 3.5, 4, 4, 4.5 and 5.
"""

ROOM = 0.92
"""Share of a card's memory that a plan may fill, since it is a prediction."""

THROUGHPUT = Throughput(CARDS["H100"], 0.5)
"""Of any card, since only memory is asked for."""


def resolve(config: Any, room: float, gpus: int = 1) -> Any:
    """A config with `auto` replaced by the first of `WAYS` whose training phase fits.

    A `micro_batch_size` that is set is kept.

    Args:
        room: bytes available to tensors on a card.
        gpus: number of cards.
    """
    if config.policy.gradient_checkpointing != "auto":
        return config
    own = config.policy.micro_batch_size
    ways = [(level, own or size) for level, size in WAYS if not (own and size)]
    peaks = training_peaks(config, THROUGHPUT, gpus, ways[:-1])
    fitting = (way for way, peak in zip(ways, peaks, strict=False) if peak <= ROOM * room)
    level, size = next(fitting, ways[-1])
    peaks.close()
    return replace(config, policy=replace(config.policy, gradient_checkpointing=level, micro_batch_size=size))


def settings_that_changed(before: Any, after: Any) -> dict[str, Any]:
    """The policy's settings that `resolve` changed, by their names."""
    names = ("gradient_checkpointing", "micro_batch_size") if before != after else ()
    return {f"policy.{name}": getattr(after.policy, name) for name in names}


def resolve_here(config: Any) -> Any:
    """`resolve` for the device of a run: on a CPU nothing is recomputed. The log says what was chosen."""
    if config.policy.gradient_checkpointing != "auto":
        return config
    device = torch.device(find_device(config.device))
    if device.type != "cuda":
        return replace(config, policy=replace(config.policy, gradient_checkpointing="none"))
    room = torch.cuda.get_device_properties(device).total_memory - RESERVE * 2**30
    try:
        found = resolve(config, room, int(os.environ.get("WORLD_SIZE", 1)))
    except Exception as error:  # a plan that fails must not keep a run from training
        log.warning("policy.gradient_checkpointing is full, since the run cannot be planned: %s", error)
        return replace(config, policy=replace(config.policy, gradient_checkpointing="full"))
    log.info("by the plan for %.0f GiB: %s", room / 2**30, settings_that_changed(config, found))
    return found
