"""One real step of a recipe on this machine, with random weights, to compare with the plan.

On a GPU time and memory are measured; on a CPU memory is counted by a `Meter`, and time is not measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from besttake.plan.meter import Meter, Phase, Throughput
from besttake.plan.steps import Step, black_picture

RANDOM = ("weights", "autoencoder", "text encoder")
"""Owners whose memory is filled with random numbers, since uninitialised values might not stay finite."""


def measure_step(config: Any, throughput: Throughput, device: torch.device) -> dict[str, Phase]:
    """The phases of the recipe's second step; the first is a warm-up.

    Raises:
        ValueError: the model is not available, or cannot sample the size.
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
            phase.seconds = math.nan  # the meter's are estimates for a card
    return dict(clock.phases)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of FLOPs, without a fault and a gap of it.

    Its module tracker keeps every graph that gradient checkpointing recomputes until the counter ends (180 GiB instead
    of 11 in a step of Wan 2.1 1.3B), and it does not know `addmm` in place.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_flops})
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


def _addmm_flops(_: Any, rows: torch.Size, columns: torch.Size, **__: Any) -> int:
    return 2 * math.prod(rows) * columns[1]


class _NoModules:
    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@torch.no_grad()
def fill(tensors: Iterable[Tensor]) -> None:
    """Fill weights with small random numbers, so that activations stay finite; quantized ones are left as they are."""
    for tensor in tensors:
        if tensor.is_floating_point() and not hasattr(tensor, "__tensor_flatten__"):
            tensor.normal_(std=0.02)


def randomise(name: str, part: nn.Module) -> None:
    """`fill`, for a part of a `skeleton`."""
    fill(part.parameters())


class Clock:
    """Measures time and memory of a real GPU by phase, with the interface of `Meter`."""

    def __init__(self, device: torch.device):
        self.device, self.phases = device, dict[str, Phase]()
        self._within, self._began = [Phase("")], time.perf_counter()

    def reset(self) -> None:
        """Clear the phases measured so far."""
        self.phases.clear()

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Context whose operations count towards this phase, not towards an enclosing one."""
        self._lap()
        self._within.append(self.phases.setdefault(name, Phase(name)))
        try:
            yield self._within[-1]
        finally:
            self._lap()
            self._within.pop()

    def claim(self, owner: str, tensors: Any) -> None:
        """Owners are not measured on a GPU."""
        if owner in RANDOM:
            fill(tensors)

    def memoize(
        self, work: Callable[..., Any], phase: str = "", key: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        """`work` without memoization: every call is run."""
        return _unmemoized(self, work, phase)

    def _lap(self) -> None:
        """Add the time since the last lap to the current phase."""
        torch.cuda.synchronize(self.device)
        now, phase = time.perf_counter(), self._within[-1]
        phase.seconds += now - self._began
        phase.peak = max(phase.peak, torch.cuda.max_memory_allocated(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)
        self._began = now


class FullMeter(Meter):
    """A `Meter` without memoization: every call is run."""

    def memoize(
        self, work: Callable[..., Any], phase: str = "", key: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        return _unmemoized(self, work, phase)

    def claim(self, owner: str, tensors: Any) -> None:
        tensors = list(tensors)
        if owner in RANDOM:
            fill(tensors)
        super().claim(owner, tensors)


def _unmemoized(meter: Any, work: Callable[..., Any], phase: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with meter.phase(phase) if phase else nullcontext():
            return work(*args, **kwargs)

    return run
