"""Rows of the report's tables: one measure before and after training."""

from __future__ import annotations

from dataclasses import dataclass

from besttake.report.folder import COLUMNS, RunFolder
from besttake.report.measures import (
    CRITIC_PREFIX,
    FLAW_PREFIX,
    GUARDS,
    MAIN,
    TRAINING_REWARD_PREFIX,
    Change,
    aim_of,
    difference,
    measure_of,
    shown,
)
from besttake.report.verdict import change_of, measures, values

MARKS: dict[Change, str] = {"better": "✓ better", "worse": "✗ worse", "same": "≈ same", "unknown": ""}
AIMS = {"lower": "lower is better", "higher": "higher is better", "real": "closer to real clips is better", None: ""}

TILES = 5
"""Measures shown in brief if none of the main ones was measured."""


@dataclass(frozen=True)
class Row:
    """A measure.

    Attributes:
        before, after, real: values with their units; a dash if there is none.
        track: CSS class and style of each mark on a line from the lowest value (at most 0) to the highest.
    """

    label: str
    before: str
    after: str
    real: str
    has_real: bool
    aim: str
    change: Change
    mark: str
    difference: str
    track: list[tuple[str, str]]


def row_of(run: RunFolder, name: str) -> Row:
    """The row of a measure of `summary.json`."""
    before, after, real = values(run, name)
    change, measure = change_of(run, name), measure_of(name)
    was, now = shown(name, before), shown(name, after)
    unclear = change == "same" and was != now and measure.share
    return Row(
        measure.label,
        was,
        now,
        shown(name, real),
        real is not None,
        AIMS[aim_of(name, real)],
        change,
        "≈ unclear" if unclear else MARKS[change],
        difference(name, before, after),
        _track(before, after, real),
    )


def brief_rows(run: RunFolder) -> list[Row]:
    """Rows of the main measures, or of the first few if none of those was measured."""
    main = [name for name in (*MAIN, *GUARDS) if any(value is not None for value in values(run, name)[:2])]
    return [row_of(run, name) for name in main or measures(run)[:TILES]]


def grouped_rows(run: RunFolder) -> tuple[list[tuple[str, list[Row]]], list[Row]]:
    """Rows grouped under titles, and the remaining rows."""
    summary = run.summary or {}
    names = list(dict.fromkeys(name for column in COLUMNS for name in summary.get(column, {})))
    flaws = [name for name in names if name.startswith(FLAW_PREFIX)]
    main = [name for name in (*MAIN, *GUARDS) if name in names]
    trained = [name for name in names if name.startswith(TRAINING_REWARD_PREFIX)]
    critics = [] if main else [name for name in names if name.startswith(CRITIC_PREFIX)]
    others = [name for name in names if name not in (*flaws, *main, *trained, *critics)]
    titles = ("", "Share of clips with this flaw", "Training critic", "Other critics")
    groups = zip(titles, (main, flaws, trained, critics), strict=True)
    return [(title, [row_of(run, name) for name in group]) for title, group in groups], [
        row_of(run, name) for name in others
    ]


def _track(before: float | None, after: float | None, real: float | None) -> list[tuple[str, str]]:
    there = [value for value in (before, after, real) if value is not None]
    low, high = min(0.0, *there, 0.0), max(0.0, *there, 0.0)
    if low == high:
        return []

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    named = zip(COLUMNS[::-1], (real, after, before), strict=True)
    marks = [(name, f"left:{at(value):.1f}%") for name, value in named if value is not None]
    if before is not None and after is not None:
        left, right = sorted((at(before), at(after)))
        marks.insert(0, ("bar", f"left:{left:.1f}%;width:{right - left:.1f}%"))
    return marks
