"""Metrics of a run: `metrics.jsonl`, which a resumed run appends to, and the trackers."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from besttake.data.files import atomic
from besttake.runtime.configuration import to_dict
from besttake.runtime.distributed import broadcast_from_main, is_main
from besttake.runtime.renamed import with_new_metrics
from besttake.training.config import TrainConfig
from besttake.training.trackers import open_tracker

Metrics = Mapping[str, float | Tensor]
"""Numbers to log, by names such as "train/loss"."""

KEPT_ROWS = 8
"""Recent rows that every process keeps, in case process 0 is killed before it writes them."""


class MetricsLog:
    """Log with a row per step, validation pass and alarm. Process 0 writes it; all keep the newest rows.

    Attributes:
        earlier: rows of the steps before this resume.
    """

    def __init__(self, folder: Path, step: int, config: TrainConfig):
        """
        Args:
            step: step to resume from; rows of later steps are removed.
        """
        self.path = folder / "metrics.jsonl"
        self.earlier = [
            with_new_metrics(json.loads(line)) for line in broadcast_from_main(lambda: self._truncate(step))
        ]
        self._newest: deque[dict[str, Any]] = deque(maxlen=KEPT_ROWS)
        if is_main():
            self._file = self.path.open("a")
        names = config.log if is_main() else ()
        self._trackers = [open_tracker(name, folder, step, to_dict(config)) for name in names]

    def write(self, row: dict[str, Any]) -> None:
        """Log a row, which has a "step" and "minutes"."""
        self._newest.append(row)
        if is_main():
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        for tracker in self._trackers:
            tracker.write(numbers, row["step"])

    def write_videos(self, files: Sequence[Path], prompts: Sequence[str], step: int) -> None:
        """Send the videos of a validation pass to the trackers, each with its prompt."""
        for tracker in self._trackers:
            tracker.write_videos(files, prompts, step)

    def complete(self, step: int) -> None:
        """Write the newest rows before `step` that are missing because process 0 was killed."""
        text = self.path.read_text() if self.path.exists() else ""
        rows = [json.dumps(row) for row in self._newest if row["step"] < step]
        if missing := [row for row in rows if row not in text.splitlines()]:
            with self.path.open("a") as file:
                file.write("" if text.endswith("\n") else "\n")  # the last line may be incomplete
                file.write("".join(f"{row}\n" for row in missing))

    def close(self) -> None:
        """Close the file and the trackers."""
        with ExitStack() as closing:
            for tracker in self._trackers:
                closing.callback(tracker.close)
            if is_main():
                closing.callback(self._file.close)

    def _truncate(self, step: int) -> list[str]:
        if not self.path.exists():
            return []
        rows = [line for line in self.path.read_text().splitlines() if line and _step_of(line) < step]
        with atomic(self.path) as part:
            part.write_text("".join(f"{line}\n" for line in rows))
        return rows


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # an incomplete line
