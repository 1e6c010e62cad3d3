"""Preference pairs on disk: one JSON object per line, from any source (ranked samples, real clips, people).

{"prompt": "...", "winner": "a.mp4", "losers": ["b.mp4"], "margin": 0.3, "source": "online", "scores": {"world": [...]},
"policy": "tiny-wan+run3", "policy_step": 40}

Paths are relative to the file. `prompt`, `winner` and `losers` are required; `chosen` and `rejected` are accepted as
names for `winner` and `losers`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from besttake.data.faults import read_each
from besttake.data.files import atomic, line_of, read_jsonl
from besttake.data.hub import local_copy


@dataclass(frozen=True)
class PreferencePair:
    """A video preferred to others for a prompt, and the source of the preference.

    Attributes:
        winner: video file of the preferred video.
        losers: one or more video files; not the winner.
        margin: score difference of winner and loser; 0 if unknown.
        source: "online", "real", "offline" or "human".
        scores: critic or dimension -> the winner's score, then the losers' in order.
        policy: name of the model and adapter that generated the videos.
        policy_step: number of updates of that adapter, which tells how off-policy the pair is.
    """

    prompt: str
    winner: Path
    losers: list[Path]
    margin: float = 0.0
    source: str = "offline"
    scores: dict[str, list[float]] = field(default_factory=dict)
    policy: str = ""
    policy_step: int = 0


ALIASES = {"chosen": "winner", "rejected": "losers"}


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as JSON lines, atomically, with paths relative to the file's folder.

    Raises:
        ValueError: a margin or a score is not finite.
    """
    folder = Path(path).resolve().parent
    lines = []
    for pair in pairs:
        row = asdict(pair)
        row["winner"] = _relative(pair.winner, folder)
        row["losers"] = [_relative(loser, folder) for loser in pair.losers]
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    with atomic(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_pairs(path: str | Path, skip_bad: bool | None = None) -> list[PreferencePair]:
    """Read and validate the pairs of a file, or of a dataset ("hf:...", see `hub`); every video must exist.

    Args:
        skip_bad: leave out invalid lines with a warning; None: the caller has no such setting.

    Raises:
        ValueError: lists file, lines and keys: not JSON, a key missing, unknown or of the wrong type, a number that is
            not finite, a winner among its losers, a missing video; or the file has no pairs.
    """
    path = local_copy(path, "pairs")
    rows, folder = read_jsonl(path, skip_bad), Path(path).parent
    pairs = read_each(
        rows, lambda row: _pair(row[1], folder), f"pairs of {path}", place=line_of(path), skip_bad=skip_bad
    )
    if not pairs:
        raise ValueError(f"{path} holds no preference pairs")
    return pairs


def _relative(video: Path, folder: Path) -> str:
    return Path(os.path.relpath(Path(video).resolve(), folder)).as_posix()


def _pair(row: dict[str, Any], folder: Path) -> PreferencePair:
    row = _field_names(row)
    losers = [row["losers"]] if isinstance(row["losers"], str) else row["losers"]
    if not isinstance(losers, list) or not losers:
        raise ValueError(f'"losers" (or "rejected") is {losers!r}, expected one path or a list of them')
    pair = PreferencePair(
        prompt=_text(row, "prompt"),
        winner=_video(row["winner"], "winner", folder),
        losers=[_video(loser, "losers", folder) for loser in losers],
        margin=_number(row.get("margin", 0.0), "margin"),
        source=_text({"source": "offline"} | row, "source"),
        scores=_scores(row.get("scores", {}), 1 + len(losers)),
        policy=row.get("policy", ""),
        policy_step=row.get("policy_step", 0),
    )
    if pair.winner in pair.losers:
        raise ValueError(f'"winner" {row["winner"]!r} is among its own "losers"')
    if not isinstance(pair.policy, str):
        raise ValueError(f'"policy" is {pair.policy!r}, expected text')
    if type(pair.policy_step) is not int or pair.policy_step < 0:
        raise ValueError(f'"policy_step" is {pair.policy_step!r}, expected a whole number of 0 or more')
    return pair


def _field_names(row: dict[str, Any]) -> dict[str, Any]:
    """The row with aliases replaced; ValueError if a required key is missing or a key is unknown."""
    for alias, name in ALIASES.items():
        if alias in row and name in row:
            raise ValueError(f'both "{name}" and "{alias}" are given; they are the same, keep one')
    row = {ALIASES.get(key, key): value for key, value in row.items()}
    known = PreferencePair.__dataclass_fields__
    unknown = [key for key in row if key not in known]
    missing = [key for key in ("prompt", "winner", "losers") if key not in row]
    if unknown:
        raise ValueError(f'unknown key "{unknown[0]}"; known are {", ".join([*known, *ALIASES])}')
    if missing:
        alias = {name: f' (or "{alias}")' for alias, name in ALIASES.items()}.get(missing[0], "")
        raise ValueError(f'"{missing[0]}"{alias} is missing')
    return row


def _text(row: dict[str, Any], key: str) -> str:
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f'"{key}" is {row[key]!r}, expected text')
    return row[key]


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f'"{key}" is {value!r}, expected a finite number')
    return float(value)


def _video(value: object, key: str, folder: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f'"{key}" holds {value!r}, expected the path of a video')
    if not (folder / value).is_file():
        raise ValueError(f'"{key}": {folder / value} does not exist')
    return folder / value


def _scores(value: object, count: int) -> dict[str, list[float]]:
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        raise ValueError(f'"scores" is {value!r}, expected {{"name": [winner, loser, ...]}}')
    for name, column in value.items():
        if len(column) != count:
            raise ValueError(
                f'"scores" has {len(column)} numbers under "{name}", expected {count}: winner, then losers'
            )
    return {name: [_number(score, f"scores.{name}") for score in column] for name, column in value.items()}
