"""One real step of a recipe on this machine, with random weights, beside what the plan says of it.

On a GPU time and memory are the card's own; on a CPU memory is counted by a `Meter`, and time is not measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from besttake.plan.meter import Meter, Phase, Throughput
from besttake.plan.steps import Step, black_picture

RANDOM = ("weights", "autoencoder", "text encoder")
"""Owners of what is given random numbers: what was in memory before might not stay finite."""


def measure_step(config: Any, throughput: Throughput, device: torch.device) -> dict[str, Phase]:
    """The phases of the recipe's second step; in the first, kernels are chosen.

    Raises:
        ValueError: the model cannot be had, or cannot sample the size.
    """
    clock: Any = Clock(device) if device.type == "cuda" else FullMeter(device, throughput)
    with nullcontext() if device.type == "cuda" else clock:
        with black_picture() as picture:
            step = Step(config, clock, picture, device)
        for _ in range(2):
            clock.phases.clear()
            step.step()
    if device.type != "cuda":
        for phase in clock.phases.values():
            phase.seconds = math.nan  # those of a card, by the meter
    return dict(clock.phases)


@torch.no_grad()
def fill(tensors: Iterable[Tensor]) -> None:
    """Give weights small random numbers, so that activations stay finite; quantized ones keep what they have."""
    for tensor in tensors:
        if tensor.is_floating_point() and not hasattr(tensor, "__tensor_flatten__"):
            tensor.normal_(std=0.02)


def randomise(name: str, part: nn.Module) -> None:
    """`fill`, for a part of a `skeleton`."""
    fill(part.parameters())


class Clock:
    """What a `Meter` is to a fake device: time and memory of a GPU, by phase."""

    def __init__(self, device: torch.device):
        self.device, self.phases = device, dict[str, Phase]()
        self._within, self._began = [Phase("")], time.perf_counter()

    def again(self) -> None:
        """Forget the phases so far."""
        self.phases.clear()

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """What happens within counts for this phase, and not for one around it."""
        self._lap()
        self._within.append(self.phases.setdefault(name, Phase(name)))
        try:
            yield self._within[-1]
        finally:
            self._lap()
            self._within.pop()

    def claim(self, owner: str, tensors: Any) -> None:
        """Whose memory it is cannot be seen."""
        if owner in RANDOM:
            fill(tensors)

    def once(self, work: Callable[..., Any], phase: str = "") -> Callable[..., Any]:
        """The same function, every call of which is run."""
        return _every_time(self, work, phase)

    def _lap(self) -> None:
        """Add what has passed since the last lap to the phase that it was in."""
        torch.cuda.synchronize(self.device)
        now, phase = time.perf_counter(), self._within[-1]
        phase.seconds += now - self._began
        phase.peak = max(phase.peak, torch.cuda.max_memory_allocated(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)
        self._began = now


class FullMeter(Meter):
    """A meter under which everything is run that a plan runs once."""

    def once(self, work: Callable[..., Any], phase: str = "") -> Callable[..., Any]:
        return _every_time(self, work, phase)

    def claim(self, owner: str, tensors: Any) -> None:
        tensors = list(tensors)
        if owner in RANDOM:
            fill(tensors)
        super().claim(owner, tensors)


def _every_time(meter: Any, work: Callable[..., Any], phase: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with meter.phase(phase) if phase else nullcontext():
            return work(*args, **kwargs)

    return run
