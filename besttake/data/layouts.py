"""Common layouts of captioned clips, read into one list.

- `prompt.txt` + `video.txt`: captions and paths, line by line (also `prompts.txt`, `captions.txt` and `videos.txt`);
- `x.mp4` + `x.txt`: a caption file next to each video, in the folder or its subfolders;
- one `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet` table with a column of paths and one of captions, such as
  VideoX-Fun's `metadata.json`, musubi-tuner's `.jsonl` and datasets' `metadata.jsonl`.

Paths are relative to the folder of the file that contains them. Videos are not opened here.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from besttake.data.files import read_jsonl, read_text

VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".m1v", ".m2v", ".wmv", ".flv", ".ts", ".mts"),
    *(".m2ts", ".3gp", ".mxf", ".h264", ".264", ".h265", ".265", ".hevc", ".y4m", ".gif"),
)
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
CAPTION_FILES = ("prompt.txt", "prompts.txt", "caption.txt", "captions.txt")
VIDEO_FILES = ("video.txt", "videos.txt")
PATH_COLUMNS = ("path", "video", "file", "file_name", "filename", "video_path", "file_path", "video_file")
CAPTION_COLUMNS = ("caption", "prompt", "text")
EXPECTED_LAYOUTS = (
    "prompt.txt + video.txt; x.mp4 + x.txt; or one .csv, .tsv, .jsonl, .json or .parquet table of path and caption"
)
NOT_CAPTIONS = (
    r"(read.?me|licen[cs]e|copying|copyright|notice|notes?|changelog|credits?|citation|authors?|about|info|todo)"
)
"""Beginnings of the names of text files that are no captions."""


@dataclass(frozen=True)
class ListedClip:
    """A listed clip; its caption may be empty and its file missing. `place` says where the caption should be.

    `fault` is the error of the line or row, if any.
    """

    path: Path
    caption: str
    place: str
    fault: str = ""


def list_clips(source: str | Path) -> list[ListedClip]:
    """The clips listed by a folder or a table file.

    Raises:
        ValueError: `source` is missing, empty, in no known layout or in several; captions and videos differ in number;
            a table lacks a column.
    """
    source = Path(source)
    if source.is_file():
        return _read_table(source)
    if not source.is_dir():
        raise ValueError(f"{source} does not exist; expected a folder of clips or a table: {EXPECTED_LAYOUTS}")
    files = sorted(file for file in source.iterdir() if file.is_file() and not file.name.startswith("."))
    tables = [file for file in files if _is_table(file)]
    lines = [file for file in files if _is_lines(file)]
    videos, texts = _videos_and_texts(files)
    captioned = {video.stem for video in videos} & {text.stem for text in texts}

    layouts = [table.name for table in tables]
    layouts += [" + ".join(file.name for file in lines)] if lines else []
    layouts += ["x.mp4 + x.txt"] if captioned or (videos and not layouts) else []
    if len(layouts) > 1:
        raise ValueError(
            f"{source} has several layouts ({'; '.join(layouts)}); keep one, or give the path of the table"
        )
    if tables:
        return _read_table(tables[0])
    if lines:
        return _read_lines(source, lines, files)
    return _read_caption_files(videos, texts) if layouts else _read_subfolders(source, files)


def _is_table(file: Path) -> bool:
    """Whether a file is a table; a `.json` only if it is a list of objects (unlike `dataset_info.json`)."""
    if file.suffix.lower() != ".json":
        return file.suffix.lower() in TABLE_SUFFIXES
    try:
        rows = json.loads(read_text(file))
    except (ValueError, RecursionError):
        return file.name == "metadata.json"
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)


def _is_lines(file: Path) -> bool:
    return file.name.lower() in CAPTION_FILES + VIDEO_FILES


def _videos_and_texts(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The videos, and the text files that may be their captions."""
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    texts = [file for file in files if file.suffix.lower() == ".txt" and not _is_lines(file)]
    beside = {video.with_suffix("") for video in videos}
    return videos, [
        text
        for text in texts
        if text.with_suffix("") in beside or not re.match(rf"{NOT_CAPTIONS}(\W|_|$)", text.stem, re.IGNORECASE)
    ]


def _read_subfolders(source: Path, files: list[Path]) -> list[ListedClip]:
    """The clips in the subfolders of a folder without clips."""
    every = (file for file in source.rglob("*") if file.is_file())
    below = sorted(file for file in every if not any(part.startswith(".") for part in file.relative_to(source).parts))
    listed = [str(file.relative_to(source)) for file in below if _is_table(file) or _is_lines(file)]
    videos, texts = _videos_and_texts(below)
    if not listed and videos and texts:
        return _read_caption_files(videos, texts)
    present = listed or [file.name for file in files] or [str(file.relative_to(source)) for file in below]
    what = f"has no captioned clips (there is {_first_names(present)})" if present else "is empty"
    raise ValueError(
        f"{source} {what}; expected {EXPECTED_LAYOUTS}{'; give the path of the folder or table' if listed else ''}"
    )


def _first_names(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _listed_clip(folder: Path, path: str, caption: str, place: str) -> ListedClip:
    path = path.strip()
    if not path:
        return ListedClip(folder, caption, place, f"{folder}: {place} has no path of a video")
    if "\\" in path and not (folder / path).is_file():  # a table written on Windows
        path = path.replace("\\", "/")
    return ListedClip(folder / path, " ".join(caption.split()), place)


def _read_lines(folder: Path, lines: list[Path], files: list[Path]) -> list[ListedClip]:
    captions, paths = ([file for file in lines if file.name.lower() in names] for names in (CAPTION_FILES, VIDEO_FILES))
    for names, present in ((CAPTION_FILES, captions), (VIDEO_FILES, paths)):
        if not present:
            others = [file.name for file in files if file.suffix.lower() == ".txt" and file not in lines]
            hint = f" (there is {_first_names(others)}: rename it if it has them)" if others else ""
            raise ValueError(f"{folder} has {lines[0].name}, but no {' or '.join(names)} beside it{hint}")
        if len(present) > 1:
            raise ValueError(f"{folder} has {' and '.join(file.name for file in present)}; keep one of them")
    place = f"{captions[0].name} + {paths[0].name}"
    captioned, listed = (read_text(file).rstrip().split("\n") for file in (captions[0], paths[0]))
    if len(captioned) != len(listed):
        raise ValueError(
            f"{folder}: {captions[0].name} has {len(captioned)} lines, {paths[0].name} has {len(listed)}; "
            "expected one line per clip in each"
        )
    rows = enumerate(zip(listed, captioned, strict=True), start=1)
    return [_listed_clip(folder, path, caption, f"line {i} of {place}") for i, (path, caption) in rows]


def _read_caption_files(videos: list[Path], texts: list[Path]) -> list[ListedClip]:
    captions = {text.with_suffix(""): text for text in texts}
    listed = []
    for video in videos:
        text = captions.pop(video.with_suffix(""), None)
        caption = read_text(text) if text else ""
        listed.append(_listed_clip(video.parent, video.name, caption, f"{video.stem}.txt is missing or empty"))
    without_video = [
        ListedClip(text, "", "", f"{text.parent}: no video beside {text.name}") for text in captions.values()
    ]
    return listed + without_video


def _read_table(table: Path) -> list[ListedClip]:
    readers: dict[str, Callable[[Path], list[tuple[int, dict[str, Any]]]]] = {
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".jsonl": read_jsonl,
        ".json": _json_rows,
        ".parquet": _parquet_rows,
    }
    if table.suffix.lower() not in readers:
        raise ValueError(f"{table}: expected a folder of clips or a table ({', '.join(TABLE_SUFFIXES)})")
    rows = readers[table.suffix.lower()](table)
    if not rows:
        raise ValueError(f"{table} has no rows")
    columns = list(dict.fromkeys(key for _, row in rows for key in row if key is not None))
    path, caption = _column(table, columns, PATH_COLUMNS), _column(table, columns, CAPTION_COLUMNS)
    return [_row(table, number, row, path, caption) for number, row in rows]


def _column(table: Path, columns: list[str], names: tuple[str, ...]) -> str:
    matches = [column for column in columns if column.strip().lower() in names]
    if len(matches) != 1:
        present = " and ".join(matches) if matches else ", ".join(columns)
        advice = ": rename or remove the other" if matches else ""
        raise ValueError(f"{table} has the columns {present}; expected exactly one of {', '.join(names)}{advice}")
    return matches[0]


def _row(table: Path, number: int, row: dict[str, Any], path: str, caption: str) -> ListedClip:
    place = f"row {number} of {table.name}"
    if None in row:
        fault = f"{table}, row {number}: more cells than columns; put captions with commas in quotes"
        return ListedClip(table, "", place, fault)
    for key in (path, caption):
        if row.get(key) is not None and not isinstance(row[key], str):
            fault = f"{table}, row {number}: {key} is {type(row[key]).__name__}, expected text"
            return ListedClip(table, "", place, fault)
    if str(row.get("type")).lower() == "image":  # VideoX-Fun mixes images and videos
        return ListedClip(
            table,
            "",
            place,
            f"{table}, row {number}: {row[path]} is an image; remove the row, only videos are supported",
        )
    return _listed_clip(table.parent, row.get(path) or "", row.get(caption) or "", place)


def _csv_rows(table: Path) -> list[tuple[int, dict[str, Any]]]:
    text = io.StringIO(read_text(table), newline="")
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        return list(enumerate(reader, start=1))
    except csv.Error as error:
        raise ValueError(f"{table}, line {reader.reader.line_num}, cannot be read as a table ({error})") from error


def _json_rows(table: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        rows = json.loads(read_text(table))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{table}: not JSON ({error}); name it .jsonl if it has one object per line") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{table}: expected a list of objects [{{...}}, ...]")
    return list(enumerate(rows, start=1))


def _parquet_rows(table: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{table}: parquet needs pyarrow; install it: pip install 'besttake[parquet]'") from error
    try:
        rows = pyarrow.parquet.read_table(table).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{table} cannot be read as parquet: {error}") from error
    return list(enumerate(rows, start=1))
