"""The plan against a real machine: a recipe at its real size with random weights, planned and run by the same lines.

On a GPU: peak memory and seconds of each phase of a step, beside the plan's, and the efficiency with which the plan's
seconds would be right. On a CPU only memory can be compared, since the table of cards has none.

    python benchmarks/plan_accuracy.py --recipe onlinevpo-wan-1.3b --card H100
    python benchmarks/plan_accuracy.py --recipe onlinevpo-tiny --device cpu
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from random_weights import fill
from rich.console import Console
from rich.table import Table

from besttake.commands.cli import read_recipe
from besttake.plan.cards import find_card
from besttake.plan.meter import Meter, Phase, Throughput
from besttake.plan.steps import STEP, Step, black_picture, measure
from besttake.rewards.panel import RewardConfig
from besttake.runtime.devices import describe_device, find_device

GIB = 2**30

DRAWN = ("weights", "autoencoder", "text encoder")
"""Owners of what is given random numbers: what was in memory before might not stay finite."""


@dataclass(frozen=True)
class AccuracyConfig:
    """Take a recipe's step, planned and for real."""

    recipe: str = "onlinevpo-tiny"
    card: str = "H100"
    """What the machine's card is called in besttake/plan/cards.py."""
    device: str = "auto"
    efficiency: float = 0.5
    steps: int = 2
    """Sampling steps; those of the recipe would cost the same each."""
    rows: int = 1
    """Prompts or real clips of a step."""
    aim: float = 0.15
    """How far off the plan's memory may be."""
    out: Path | None = None
    """Where to write the figures, a .json."""


class Clock:
    """What a `Meter` is to an imagined card: time and memory of a real one, by phase."""

    def __init__(self, device: torch.device):
        self.device, self.phases = device, dict[str, Phase]()
        self._within, self._began = [Phase("")], 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        self._lap()
        self._within.append(self.phases.setdefault(name, Phase(name)))
        try:
            yield self._within[-1]
        finally:
            self._lap()
            self._within.pop()

    def claim(self, owner: str, tensors: Any) -> None:
        """Whose memory it is cannot be seen."""
        if owner in DRAWN:
            fill(tensors)

    def once(self, work: Callable[..., Any], phase: str = "") -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not phase:
                return work(*args, **kwargs)
            with self.phase(phase):
                return work(*args, **kwargs)

        return timed

    def _lap(self) -> None:
        """Put down what has passed since the last lap to the phase that it was in."""
        torch.cuda.synchronize(self.device)
        now, phase = time.perf_counter(), self._within[-1]
        phase.seconds += now - self._began
        phase.peak = max(phase.peak, torch.cuda.max_memory_allocated(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)
        self._began = now


class Whole(Meter):
    """A meter under which everything is run that a plan runs once."""

    def once(self, work: Callable[..., Any], phase: str = "") -> Callable[..., Any]:
        return Clock.once(self, work, phase)  # type: ignore[arg-type]

    def claim(self, owner: str, tensors: Any) -> None:
        tensors = list(tensors)
        if owner in DRAWN:
            fill(tensors)
        super().claim(owner, tensors)


def run(config: Any, meter: Any, device: torch.device) -> dict[str, Phase]:
    """The second step of a recipe; in the first, kernels are chosen."""
    with black_picture() as picture:
        step = Step(config, meter, picture, device)
    for _ in range(2):
        meter.phases.clear()
        step.step()
    return dict(meter.phases)


def smaller(config: Any, asked: AccuracyConfig) -> Any:
    """The recipe with few sampling steps and rows, and a critic that needs no weights."""
    rows = {"prompts_per_step", "clips_per_step", "pairs_per_step"} & vars(config).keys()
    config = replace(config, rollout=replace(config.rollout, steps=asked.steps), **dict.fromkeys(rows, asked.rows))
    config = replace(config, validation=replace(config.validation, every=0))
    return replace(config, reward=RewardConfig("motion-smoothness")) if hasattr(config, "reward") else config


def main(asked: AccuracyConfig) -> None:
    config, device = smaller(read_recipe(asked.recipe), asked), torch.device(find_device(asked.device))
    pace = Throughput(find_card(asked.card), asked.efficiency)
    planned = measure(config, pace, parts=("step",))
    on_gpu = device.type == "cuda"
    if on_gpu:
        found = run(config, Clock(device), device)
    else:
        with Whole(device, pace) as meter:
            found = run(config, meter, device)
    figures = {name: compared(planned[name], found[name], on_gpu) for name in STEP if name in planned and name in found}
    show(figures, f"{asked.recipe} on {describe_device(str(device))}")
    worst = max(abs(row["memory"] - 1) for row in figures.values())
    print(f"memory is off by {worst:.0%} at most; the aim is {asked.aim:.0%}")
    if on_gpu:
        for row in figures.values():
            right = asked.efficiency / row["time"]
            print(f"efficiency with which the plan's seconds would be right: about {right:.2f}")
    if asked.out:
        asked.out.write_text(json.dumps({"device": describe_device(str(device)), "figures": figures}, indent=1))


def compared(planned: Phase, found: Phase, on_gpu: bool) -> dict[str, float]:
    """Planned and found, and what was found as a share of what was planned."""
    row = {"planned_gib": planned.peak / GIB, "found_gib": found.peak / GIB, "memory": found.peak / planned.peak}
    if on_gpu:
        times = {"planned_seconds": planned.seconds, "found_seconds": found.seconds}
        return row | times | {"time": found.seconds / planned.seconds}
    return row | {"planned_tflop": planned.flops / 1e12, "found_tflop": found.flops / 1e12}


def show(figures: dict[str, dict[str, float]], title: str) -> None:
    columns = list(next(iter(figures.values())))
    table = Table("phase", *(column.replace("_", " ") for column in columns), title=title)
    for name, row in figures.items():
        table.add_row(name, *(f"{row[column]:.3g}" for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(AccuracyConfig))
