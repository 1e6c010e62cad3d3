"""The plan against a real machine: a recipe at its real size with random weights, planned and run by the same lines.

On a GPU: peak memory and seconds of each phase of a step, beside the plan's. On a CPU only memory can be compared,
since the table of cards has none. "prompts" includes loading the text encoder, whose seconds are not planned.

    python benchmarks/plan_accuracy.py --recipe onlinevpo-wan-1.3b --card H100
    python benchmarks/plan_accuracy.py --recipe onlinevpo-tiny --device cpu
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import tyro
from rich.console import Console
from rich.table import Table

from besttake.commands.cli import read_recipe
from besttake.models import lora
from besttake.models.policy import Policy
from besttake.plan.cards import find_card
from besttake.plan.measured import measure_step
from besttake.plan.meter import Phase, Throughput
from besttake.plan.steps import STEP, measure
from besttake.rewards.panel import RewardConfig
from besttake.runtime.devices import describe_device, find_device

GIB = 2**30


@dataclass(frozen=True)
class AccuracyConfig:
    """Compare a recipe's step as planned and as run."""

    recipe: str = "onlinevpo-tiny"
    card: str = "H100"
    """What the machine's card is called in besttake/plan/cards.py."""
    device: str = "auto"
    efficiency: float | None = None
    """Fraction of the published FLOP/s; by default as measured, by family."""
    as_peft: bool = False
    """Compute the LoRA in float32, as PEFT does, and never merge it, as the run of November 2026 did."""
    steps: int = 2
    """Sampling steps; those of the recipe would cost the same each."""
    rows: int = 1
    """Prompts or real clips of a step."""
    aim: float = 0.1
    """How far off the plan's memory may be."""
    aim_seconds: float = 0.2
    """How far off its seconds may be."""
    out: Path | None = None
    """Where to write the figures, a .json."""


def smaller(config: Any, settings: AccuracyConfig) -> Any:
    """The recipe with few sampling steps and rows, and a critic that needs no weights."""
    rows = {"prompts_per_step", "clips_per_step", "pairs_per_step"} & vars(config).keys()
    config = replace(
        config, rollout=replace(config.rollout, steps=settings.steps), **dict.fromkeys(rows, settings.rows)
    )
    config = replace(config, validation=replace(config.validation, every=0))
    return replace(config, reward=RewardConfig("motion-smoothness")) if hasattr(config, "reward") else config


def main(settings: AccuracyConfig) -> None:
    config, device = smaller(read_recipe(settings.recipe), settings), torch.device(find_device(settings.device))
    throughput = Throughput(find_card(settings.card), settings.efficiency)
    on_gpu = device.type == "cuda"
    with as_peft() if settings.as_peft else nullcontext():
        planned = measure(config, throughput, parts=("step",))
        found = measure_step(config, throughput, device)
    figures = {name: compared(planned[name], found[name], on_gpu) for name in STEP if name in planned and name in found}
    show(figures, f"{settings.recipe} on {describe_device(str(device))}")
    worst = max(abs(row["memory"] - 1) for row in figures.values())
    print(f"memory is off by {worst:.0%} at most; the aim is {settings.aim:.0%}")
    if on_gpu:
        worst = max(abs(row["time"] - 1) for name, row in figures.items() if name != "prompts")
        print(f"seconds are off by {worst:.0%} at most, without prompts; the aim is {settings.aim_seconds:.0%}")
    if settings.out:
        settings.out.write_text(json.dumps({"device": describe_device(str(device)), "figures": figures}, indent=1))


@contextmanager
def as_peft() -> Iterator[None]:
    """Context in which a LoRA on a bfloat16 base is computed as PEFT does, in rollouts too."""
    with (
        patch.object(lora, "compute_in_base_dtype", lambda _: None),
        patch.object(Policy, "merged", lambda _: nullcontext()),
    ):
        yield


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
