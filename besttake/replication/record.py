"""`replication.json`: what a replication was asked for, what was chosen, and what each of its stages has done."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from besttake.data.files import atomic, read_text
from besttake.runtime.configuration import NOT_IDENTITY, flattened

FILE, RUN = "replication.json", "run"
"""The record's file, and the folder of the training run, in a replication's folder."""

PLAN, DOWNLOAD = "plan", "download"
"""The first two stages."""

MAY_CHANGE = (
    *(name for name in NOT_IDENTITY if name not in ("steps", "minutes", "out", "validation", "evaluation")),
    *("validation.rollout.batch", "evaluation.rollout.batch"),
)
"""Settings that the command may give otherwise when a replication goes on: where it runs, and its memory use."""


@dataclass
class Record:
    """The record of a replication in a folder, written after every stage.

    Attributes:
        request: the config as it was asked for, flat with dotted names.
        choices: settings that the budget changed, each with its value and reason.
        plan: card, GiB and hours by the plan; empty without a card.
        sources: revision of everything that was loaded, by hub id or folder.
        environments: each environment in which it ran, the newest last.
        stages: by name, seconds and bytes of memory at the peak so far, and the time at which it was finished.
    """

    recipe: str
    command: str
    request: dict[str, Any]
    budget: float | None = None
    fingerprint: str = ""
    choices: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it to a folder."""
        with atomic(folder / FILE) as part:
            part.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")

    def is_finished(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return bool(self.stages.get(stage, {}).get("finished"))

    @contextmanager
    def stage(self, name: str, folder: Path) -> Iterator[None]:
        """Context of a stage: its time and its peak of memory are recorded, also of an attempt that fails."""
        entry = self.stages.setdefault(name, {"seconds": 0.0, "peak": 0})
        began = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield
            entry["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        finally:
            entry["seconds"] = round(entry["seconds"] + time.perf_counter() - began, 1)
            entry["peak"] = max(entry["peak"], peak_memory())
            if self.is_finished(PLAN):  # a plan that is refused leaves the folder free for other settings
                self.write(folder)


def open_record(folder: Path, wanted: Record) -> Record:
    """The record in a folder; the wanted one if the folder is new, empty, or has but a plan of something else.

    Raises:
        ValueError: the folder has other files, or a replication of another recipe, budget or settings.
    """
    found = read_record(folder)
    if found is None:
        if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
            raise ValueError(f"{folder} is not empty, and holds no replication; give another --out")
        return wanted
    different = [name for name in ("recipe", "budget") if getattr(found, name) != getattr(wanted, name)]
    different += different_settings(found.request, wanted.request)
    if different and not found.is_finished(DOWNLOAD):
        return wanted
    if different:
        raise ValueError(
            f"{folder} holds another replication: {found.command} (different: {', '.join(different)}); repeat that "
            "command to go on with it, or give another --out"
        )
    return found


def read_record(folder: Path) -> Record | None:
    """The record in a folder; None if there is none, ValueError if it is broken."""
    if not (folder / FILE).is_file():
        return None
    try:
        return Record(**json.loads(read_text(folder / FILE)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / FILE} is broken ({error}); give another --out") from error


def different_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of the settings that differ, without those of `MAY_CHANGE`."""

    def may_change(name: str) -> bool:
        return any(name == setting or name.startswith(f"{setting}.") for setting in MAY_CHANGE)

    names = sorted(before.keys() | now.keys())
    return [name for name in names if before.get(name) != now.get(name) and not may_change(name)]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config's plain values as they are in JSON, flat with dotted names, without its folder."""
    return {name: json.loads(json.dumps(value)) for name, value in flattened(values).items() if name != "out"}


def peak_memory() -> int:
    """Bytes at the peak: of tensors on the card since the stage began; without a card, of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
