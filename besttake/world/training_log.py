"""Checkpoints and loss curves for training the world's models: one JSON line per report."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


class TrainingLog:
    """Averages values and writes them to a file and to the terminal at each `write`."""

    def __init__(self, folder: Path, total: int, start: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.total, self.first_step, self.start = folder / "log.jsonl", total, start, time.perf_counter()
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, step: int, **values: float) -> None:
        self.count += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def write(self, step: int, **values: float) -> None:
        seconds = time.perf_counter() - self.start
        row = {"step": step, "seconds": round(seconds, 1)}
        row |= {key: round(total / max(self.count, 1), 5) for key, total in self.sums.items()}
        row |= {key: round(value, 4) for key, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = seconds / max(step - self.first_step, 1) * (self.total - step) / 60
        print(f"{self.path.parent}: {row}, {left:.0f} min left", flush=True)
        self.sums, self.count = {}, 0


def save_state(folder: Path, module: nn.Module, optimizer: Any, step: int, **extra) -> None:
    """Write module, optimizer and step to `folder/state.pt`, atomically."""
    temporary = folder / "state.pt.part"
    state = {"module": module.state_dict(), "optimizer": optimizer and optimizer.state_dict(), "step": step, **extra}
    torch.save(state, temporary)
    os.replace(temporary, folder / "state.pt")


def load_state(folder: Path, module: nn.Module, optimizer: Any) -> int:
    """Load the state; returns the step to continue from, 0 if there is none."""
    path = folder / "state.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
