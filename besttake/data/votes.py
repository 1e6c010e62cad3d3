"""What people said of takes, from the layouts in which it is published, as one list of ballots.

- `.jsonl`, a line a group: {"prompt": "...", "takes": ["a.mp4", "b.mp4", "c.mp4"], "best": 1}, where best is an index
  from 0 or a list of several; `takes.jsonl` of `besttake generate` becomes one as soon as each line has its "best";
- `.jsonl`, a line a pair: {"prompt": "...", "a": "x.mp4", "b": "y.mp4", "winner": "a"}, or "b" or "tie";
- `.csv` of VideoAlign (Liu et al. 2025): path_A, path_B, prompt, and A, B or same under VQ, MQ, TA, Overall;
- `pair.json` and `metadata.json` of VideoDPO (Liu et al. 2024): pairs of places in the list of clips.

Paths are relative to the file, and every video must be there. A line of a `.jsonl` may tell the "size" [height, width]
at which its takes are to be seen; by default that is the files' own.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from besttake.data.faults import read_each
from besttake.data.files import read_jsonl, read_text

QUESTIONS = ("Overall", "ALL", "VQ", "MQ", "TA")
"""Columns of VideoAlign's tables: all in all (under either name), visual quality, motion quality, text alignment."""

CSV_VOTES = {"A": (0,), "B": (1,), "same": (0, 1)}
PAIR_VOTES = {"a": (0,), "b": (1,), "tie": (0, 1)}


@dataclass(frozen=True)
class Vote:
    """Takes of a prompt, and which of them people liked best.

    A vote on a pair is a ballot of two takes, and a tie one in which both are best. Takes that are not among the best
    were not compared with each other.

    Attributes:
        takes: video files, two or more, all different.
        best: indices into `takes`, one or more, ascending.
        size: (height, width) at which to look at the takes; None = the files' own.
    """

    prompt: str
    candidates: tuple[Path, ...]
    best: tuple[int, ...]
    size: tuple[int, int] | None = None


def read_votes(path: str | Path, question: str = "") -> list[Vote]:
    """The ballots of a file, or of a folder in VideoDPO's layout.

    Args:
        question: the column of a VideoAlign table that is asked about; by default "Overall" or "ALL", or the only one.

    Raises:
        ValueError: naming the file and the line: an unknown layout, a key missing, an unknown vote, a best that is no
            index of a take, a video that is not there; or no votes at all.
    """
    path = Path(path) / "pair.json" if Path(path).is_dir() else Path(path)
    suffix = path.suffix.lower()
    if question and suffix != ".csv":
        raise ValueError(f"{path} is no VideoAlign table (.csv) and asks one question only; leave out {question!r}")
    if suffix == ".jsonl":
        ballots = _ballots(path, read_jsonl(path), "line", lambda row: _line(row, path.parent))
    elif suffix == ".csv":
        ballots = _videoalign(path, question)
    elif suffix == ".json":
        ballots = _videodpo(path)
    else:
        raise ValueError(f"{path}: expected votes as .jsonl, as VideoAlign's .csv, or as VideoDPO's pair.json")
    if not ballots:
        raise ValueError(f"{path} holds no votes")
    return ballots


def _ballots(
    path: Path, rows: list[tuple[int, dict[str, Any]]], place: str, read: Callable[[dict[str, Any]], Vote]
) -> list[Vote]:
    """What `read` makes of numbered rows; all that are no good are named with their place."""
    return read_each(rows, lambda row: read(row[1]), f"votes of {path}", place=lambda row: f"{path}, {place} {row[0]}")


def _line(row: dict[str, Any], folder: Path) -> Vote:
    if "takes" in row:
        files, best = _listed(row), _best(row)
    elif "a" in row and "b" in row:
        files, best = [row["a"], row["b"]], _vote(row.get("winner"), "winner", PAIR_VOTES)
    else:
        raise ValueError('expected "takes" and "best", or "a", "b" and "winner"')
    return _ballot(row.get("prompt"), files, best, folder, _size(row.get("size")))


def _listed(row: dict[str, Any]) -> list[Any]:
    if not isinstance(row["takes"], list) or len(row["takes"]) < 2:
        raise ValueError(f'"takes" is {row["takes"]!r}, expected a list of two video files or more')
    return row["takes"]


def _best(row: dict[str, Any]) -> tuple[int, ...]:
    told, count = row.get("best"), len(row["takes"])
    best = told if isinstance(told, list) else [told]
    if not best or not all(type(index) is int and 0 <= index < count for index in best):
        raise ValueError(f'"best" is {told!r}, expected an index from 0 to {count - 1}, or a list of several')
    return tuple(sorted(set(best)))


def _vote(value: Any, key: str, votes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    vote = value.strip() if isinstance(value, str) else ""
    if vote not in votes:
        raise ValueError(f'"{key}" is {value!r}, expected one of {", ".join(votes)}')
    return votes[vote]


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
        raise ValueError(f'"size" is {value!r}, expected [height, width]')
    return value[0], value[1]


def _ballot(prompt: Any, files: list[Any], best: tuple[int, ...], folder: Path, size=None) -> Vote:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'expected text under "prompt", got {prompt!r}')
    for file in files:
        if not isinstance(file, str) or not file.strip():
            raise ValueError(f"{file!r} is not the path of a video")
        if not (folder / file.strip()).is_file():
            raise ValueError(f"there is no video {folder / file.strip()}")
    takes = tuple(folder / file.strip() for file in files)
    if len(set(takes)) < len(takes):
        raise ValueError(f"the same video is there twice among {', '.join(map(str, files))}")
    return Vote(prompt.strip(), takes, best, size)


def _videoalign(table: Path, question: str) -> list[Vote]:
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""))
    columns = list(reader.fieldnames or [])
    missing = [name for name in ("path_A", "path_B", "prompt") if name not in columns]
    if missing:
        raise ValueError(f"{table} has the columns {', '.join(columns) or 'of an empty file'}; it lacks {missing[0]}")
    column = _column(table, columns, question)

    def ballot(row: dict[str, Any]) -> Vote:
        return _ballot(
            row["prompt"], [row["path_A"], row["path_B"]], _vote(row[column], column, CSV_VOTES), table.parent
        )

    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{table}, line {reader.line_num}: cannot be read as CSV ({error})") from error
    return _ballots(table, rows, "line", ballot)


def _column(table: Path, columns: list[str], question: str) -> str:
    there = [name for name in QUESTIONS if name in columns]
    if question:
        if question not in columns:
            raise ValueError(f"{table} has no votes under {question!r}; it has {', '.join(there) or 'none'}")
        return question
    chosen = [name for name in there if name in ("Overall", "ALL")] or there
    if len(chosen) != 1:
        raise ValueError(f"{table} has votes under {', '.join(there) or 'none of ' + ', '.join(QUESTIONS)}; name one")
    return chosen[0]


def _videodpo(path: Path) -> list[Vote]:
    """`video1` is the better one, unless there is a "label" of 1. Its "score" weighs the pair; it is no vote."""
    pairs, clips = _json_list(path), _json_list(path.with_name("metadata.json"))

    def ballot(pair: Any) -> Vote:
        if not isinstance(pair, dict):
            raise ValueError(f'expected an object with "video1" and "video2", got {pair!r}')
        label = pair.get("label", 0)
        if label not in (0, 1):
            raise ValueError(f'"label" is {label!r}, expected 0, the first video is better, or 1, the second')
        files = [_clip(pair.get(key), key, clips, path.parent) for key in ("video1", "video2")]
        caption = pair.get("frame_caption")
        prompt = caption[0] if isinstance(caption, list) and caption else caption
        return _ballot(prompt, files, (int(label),), path.parent)

    return _ballots(path, list(enumerate(pairs, start=1)), "pair", ballot)


def _json_list(path: Path) -> list[Any]:
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list [...], got {type(rows).__name__}")
    return rows


def _clip(index: Any, key: str, clips: list[Any], folder: Path) -> str:
    """The path of a clip; one that was written for another machine is looked for by its folder and name."""
    if type(index) is not int or not 0 <= index < len(clips):
        raise ValueError(f'"{key}" is {index!r}, expected a place in metadata.json, 0 to {len(clips) - 1}')
    try:
        told = str(clips[index]["basic"]["clip_path"])
    except (KeyError, TypeError) as error:
        raise ValueError(f'clip {index} of metadata.json has no ["basic"]["clip_path"]') from error
    near = Path(*Path(told).parts[-2:])
    return str(near) if not (folder / told).is_file() and (folder / near).is_file() else told
