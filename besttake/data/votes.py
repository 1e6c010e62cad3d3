"""Human votes on videos, read from common layouts into one list of `Vote`s.

- `.jsonl`, one group per line: {"prompt": "...", "videos": ["a.mp4", "b.mp4", "c.mp4"], "best": 1}, where best is an
  index from 0 or a list of indices; a `samples.jsonl` of `besttake generate` with "best" added to each line is valid;
- `.jsonl`, one pair per line: {"prompt": "...", "a": "x.mp4", "b": "y.mp4", "winner": "a"}, or "b" or "tie";
- `.csv` of VideoAlign (Liu et al. 2025): path_A, path_B, prompt, and A, B or same under VQ, MQ, TA, Overall;
- `pair.json` and `metadata.json` of VideoDPO (Liu et al. 2024): pairs of indices into the list of clips.

Paths are relative to the file, and every video must exist. A line of a `.jsonl` may have a "size" [height, width] to
which its videos are resized; default: the files' own size.
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
from besttake.runtime.renamed import with_new_keys

VOTE_COLUMNS = ("Overall", "ALL", "VQ", "MQ", "TA")
"""Columns of VideoAlign's tables: overall (two names), visual quality, motion quality, text alignment."""

CSV_VOTES = {"A": (0,), "B": (1,), "same": (0, 1)}
PAIR_VOTES = {"a": (0,), "b": (1,), "tie": (0, 1)}


@dataclass(frozen=True)
class Vote:
    """Candidates of a prompt, and which of them people preferred.

    A pair has two candidates; in a tie both are best. Candidates that are not best were not compared with each other.

    Attributes:
        candidates: video files, two or more, all different.
        best: indices into `candidates`, one or more, ascending.
        size: (height, width) to resize the candidates to; None = the files' own.
    """

    prompt: str
    candidates: tuple[Path, ...]
    best: tuple[int, ...]
    size: tuple[int, int] | None = None


def read_votes(path: str | Path, question: str = "") -> list[Vote]:
    """Read the votes of a file, or of a folder in VideoDPO's layout.

    Args:
        question: the column of a VideoAlign table to use; default: "Overall" or "ALL", or the only one.

    Raises:
        ValueError: names file and line: an unknown layout, a missing key, an unknown vote, an invalid index in best, a
            missing video; or there are no votes.
    """
    path = Path(path) / "pair.json" if Path(path).is_dir() else Path(path)
    suffix = path.suffix.lower()
    if question and suffix != ".csv":
        raise ValueError(
            f"{path} is no VideoAlign table (.csv) and has a single question; leave out question {question!r}"
        )
    if suffix == ".jsonl":
        votes = _read_rows(path, read_jsonl(path), "line", lambda row: _line(row, path.parent))
    elif suffix == ".csv":
        votes = _videoalign(path, question)
    elif suffix == ".json":
        votes = _videodpo(path)
    else:
        raise ValueError(f"{path}: expected votes as .jsonl, as VideoAlign's .csv, or as VideoDPO's pair.json")
    if not votes:
        raise ValueError(f"{path} has no votes")
    return votes


def _read_rows(
    path: Path, rows: list[tuple[int, dict[str, Any]]], place: str, read: Callable[[dict[str, Any]], Vote]
) -> list[Vote]:
    """Apply `read` to numbered rows; an error lists all invalid rows."""
    return read_each(rows, lambda row: read(row[1]), f"votes of {path}", place=lambda row: f"{path}, {place} {row[0]}")


def _line(row: dict[str, Any], folder: Path) -> Vote:
    row = with_new_keys(row)
    if "videos" in row:
        files, best = _video_list(row), _best(row)
    elif "a" in row and "b" in row:
        files, best = [row["a"], row["b"]], _choice(row.get("winner"), "winner", PAIR_VOTES)
    else:
        raise ValueError('expected "videos" and "best", or "a", "b" and "winner"')
    return _make_vote(row.get("prompt"), files, best, folder, _size(row.get("size")))


def _video_list(row: dict[str, Any]) -> list[Any]:
    if not isinstance(row["videos"], list) or len(row["videos"]) < 2:
        raise ValueError(f'"videos" is {row["videos"]!r}, expected a list of two video files or more')
    return row["videos"]


def _best(row: dict[str, Any]) -> tuple[int, ...]:
    value, count = row.get("best"), len(row["videos"])
    best = value if isinstance(value, list) else [value]
    if not best or not all(type(index) is int and 0 <= index < count for index in best):
        raise ValueError(f'"best" is {value!r}, expected an index from 0 to {count - 1}, or a list of several')
    return tuple(sorted(set(best)))


def _choice(value: Any, key: str, choices: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    vote = value.strip() if isinstance(value, str) else ""
    if vote not in choices:
        raise ValueError(f'"{key}" is {value!r}, expected one of {", ".join(choices)}')
    return choices[vote]


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
        raise ValueError(f'"size" is {value!r}, expected [height, width]')
    return value[0], value[1]


def _make_vote(prompt: Any, files: list[Any], best: tuple[int, ...], folder: Path, size=None) -> Vote:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'expected text under "prompt", got {prompt!r}')
    for file in files:
        if not isinstance(file, str) or not file.strip():
            raise ValueError(f"{file!r} is not the path of a video")
        if not (folder / file.strip()).is_file():
            raise ValueError(f"there is no video {folder / file.strip()}")
    candidates = tuple(folder / file.strip() for file in files)
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"the same video is listed twice: {', '.join(map(str, files))}")
    return Vote(prompt.strip(), candidates, best, size)


def _videoalign(table: Path, question: str) -> list[Vote]:
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""))
    columns = list(reader.fieldnames or [])
    missing = [name for name in ("path_A", "path_B", "prompt") if name not in columns]
    if missing:
        raise ValueError(f"{table} has the columns {', '.join(columns) or 'of an empty file'}; {missing[0]} is missing")
    column = _column(table, columns, question)

    def read(row: dict[str, Any]) -> Vote:
        return _make_vote(
            row["prompt"], [row["path_A"], row["path_B"]], _choice(row[column], column, CSV_VOTES), table.parent
        )

    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{table}, line {reader.line_num}: cannot be read as CSV ({error})") from error
    return _read_rows(table, rows, "line", read)


def _column(table: Path, columns: list[str], question: str) -> str:
    known = [name for name in VOTE_COLUMNS if name in columns]
    if question:
        if question not in columns:
            raise ValueError(f"{table} has no votes under {question!r}; it has {', '.join(known) or 'none'}")
        return question
    chosen = [name for name in known if name in ("Overall", "ALL")] or known
    if len(chosen) != 1:
        raise ValueError(
            f"{table} has votes under {', '.join(known) or 'none of ' + ', '.join(VOTE_COLUMNS)}; name one as question"
        )
    return chosen[0]


def _videodpo(path: Path) -> list[Vote]:
    """`video1` is preferred unless "label" is 1. "score" is a weight of the pair and is ignored."""
    pairs, clips = _json_list(path), _json_list(path.with_name("metadata.json"))

    def read(pair: Any) -> Vote:
        if not isinstance(pair, dict):
            raise ValueError(f'expected an object with "video1" and "video2", got {pair!r}')
        label = pair.get("label", 0)
        if label not in (0, 1):
            raise ValueError(f'"label" is {label!r}, expected 0 (the first video is better) or 1 (the second)')
        files = [_clip(pair.get(key), key, clips, path.parent) for key in ("video1", "video2")]
        caption = pair.get("frame_caption")
        prompt = caption[0] if isinstance(caption, list) and caption else caption
        return _make_vote(prompt, files, (int(label),), path.parent)

    return _read_rows(path, list(enumerate(pairs, start=1)), "pair", read)


def _json_list(path: Path) -> list[Any]:
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list [...], got {type(rows).__name__}")
    return rows


def _clip(index: Any, key: str, clips: list[Any], folder: Path) -> str:
    """The path of a clip; a path of another machine is resolved by its last folder and name."""
    if type(index) is not int or not 0 <= index < len(clips):
        raise ValueError(f'"{key}" is {index!r}, expected an index into metadata.json, 0 to {len(clips) - 1}')
    try:
        value = str(clips[index]["basic"]["clip_path"])
    except (KeyError, TypeError) as error:
        raise ValueError(f'clip {index} of metadata.json has no ["basic"]["clip_path"]') from error
    near = Path(*Path(value).parts[-2:])
    return str(near) if not (folder / value).is_file() and (folder / near).is_file() else value
