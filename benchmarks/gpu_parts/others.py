"""Figures of the other benchmarks: speed relative to public code, the plan's accuracy, memory, critics."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import critic_throughput
import memory_figure as figure
import plan_accuracy as plan
import torch
import training_step
from timing import Rows, free

from besttake.plan.cards import CARDS

CORNERS = (
    ("dpo", "full", "240p", 17),
    ("dpo", "full", "720p", 136),
    ("dpo", "lora", "240p", 17),
    ("dpo", "lora", "720p", 136),
    ("refl", "lora", "240p", 17),
    ("refl", "lora", "240p", 68),
)
"""Of the memory figure: method, trained weights, size, frames."""


def speed(source: str, rows: Rows, tiny: bool) -> None:
    """Sampling, a DPO step and decoding, ours and theirs."""
    config = training_step.SpeedConfig(batch=2, steps=2, repeats=1, compile=True)
    if tiny:
        config = training_step.SpeedConfig(dtype="float32", batch=1, steps=1, repeats=1, rank=4, device="cpu")
    training_step.measure(source, config, rows)


def plan_accuracy(recipe: str, rows: Rows, tiny: bool) -> None:
    """Memory and seconds of each phase of a step, planned and found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        card = "H100" if tiny else card_of(torch.cuda.get_device_name())
        plan.main(plan.AccuracyConfig(recipe, card, "cpu" if tiny else "cuda", out=out))
        for phase, row in json.loads(out.read_text())["figures"].items():
            rows[phase] = {name: round(value, 4) for name, value in row.items()}


def card_of(device: str) -> str:
    """A device's name in the table of cards: the one all of whose words the device's name has.

    Raises:
        ValueError: the table does not have it.
    """
    words = set(device.lower().replace("-", " ").split())
    known = [(set(name.lower().split("-")), name) for name in CARDS]
    found = [(len(its), name) for its, name in known if its <= words]
    if not found:
        raise ValueError(f"besttake/plan/cards.py has no '{device}'; add it, or measure the other parts only")
    return max(found)[1]


def memory_figure(rows: Rows, tiny: bool) -> None:
    """GiB of a training step of Open-Sora 1.2, measured; tiny: of another model, counted without a card."""
    config = figure.FigureConfig(device="cuda")
    corners = [(*corner[:2], (corner[3], *figure.SIZES[corner[2]])) for corner in CORNERS]
    if tiny:
        config, corners = figure.FigureConfig("tiny-cogvideox"), [("dpo", "lora", (16, 32, 32))]
    for method, train, clip in corners:
        name = f"{method}, {train}, {' x '.join(map(str, clip))}"
        rows[name] = {"GiB": round(figure.peak(config, method, train, clip), 4)}
        free()


def critic(name: str, rows: Rows, tiny: bool) -> None:
    """Clips a second and memory of one critic; tiny: cut to one layer a part."""
    config = critic_throughput.ThroughputConfig(gradient=False, repeats=3)
    if tiny:
        config = critic_throughput.ThroughputConfig(clips=1, frames=4, height=56, width=56, repeats=1, gradient=False)
    cost = asdict(critic_throughput.measure(name, config))
    kept = {"weights": "GB of weights", "speed": "clips a second", "peak": "peak GB"}
    rows[f"{name}, {config.clips} clips of {config.frames} x {config.height} x {config.width}"] = {
        name: round(cost[field], 3) for field, name in kept.items()
    }
