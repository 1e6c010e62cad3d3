"""The layouts in which people keep captioned clips, read into one list of entries.

- `prompt.txt` + `video.txt`: captions and paths, line by line;
- `x.mp4` + `x.txt`: a caption beside each video;
- one `.csv`, `.jsonl` or `.parquet` table with a column of paths and one of captions.

Paths are relative to the folder of the file that holds them. Videos are not opened here.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from besttake.data.files import read_jsonl, read_text

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif")
TABLES = (".csv", ".jsonl", ".parquet")
LINES = ("prompt.txt", "video.txt")
PATHS = ("path", "video", "file", "file_name")
CAPTIONS = ("caption", "prompt", "text")
EXPECTED = "prompt.txt + video.txt; x.mp4 + x.txt; or one .csv, .jsonl or .parquet table of path and caption"


@dataclass(frozen=True)
class Entry:
    """A clip as listed: its caption may be empty, its file may be missing. `place` is where the caption should be."""

    path: Path
    caption: str
    place: str


def find_entries(source: str | Path) -> list[Entry]:
    """The clips that a folder or a table file lists.

    Raises:
        ValueError: `source` is missing, empty, in no known layout or in several at once; captions and videos differ
            in number; a table lacks a column, a row lacks its path.
    """
    source = Path(source)
    if source.is_file():
        return _read_table(source)
    if not source.is_dir():
        raise ValueError(f"{source} does not exist; expected a folder of clips or a table: {EXPECTED}")
    files = sorted(file for file in source.iterdir() if file.is_file() and not file.name.startswith("."))
    tables = [file for file in files if file.suffix.lower() in TABLES]
    lines = [file for file in files if file.name in LINES]
    videos = [file for file in files if file.suffix.lower() in VIDEOS]
    captions = [file for file in files if file.suffix.lower() == ".txt" and file not in lines]
    captioned = {video.stem for video in videos} & {caption.stem for caption in captions}

    found = [table.name for table in tables]
    found += [" + ".join(LINES)] if lines else []
    found += ["x.mp4 + x.txt"] if captioned or (videos and not found) else []
    if not found:
        what = "has no captioned clips" if files else "is empty"
        raise ValueError(f"{source} {what}; expected {EXPECTED}")
    if len(found) > 1:
        raise ValueError(f"{source} holds several layouts ({'; '.join(found)}); keep one, or name the table itself")
    if tables:
        return _read_table(tables[0])
    return _read_lines(source) if lines else _read_beside(videos, captions)


def _entry(folder: Path, path: str, caption: str, place: str) -> Entry:
    if not path.strip():
        raise ValueError(f"{folder}: {place} has no path of a video")
    return Entry(folder / path.strip(), " ".join(caption.split()), place)


def _read_lines(folder: Path) -> list[Entry]:
    captions, paths = (read_text(folder / name).rstrip().split("\n") for name in LINES)
    if len(captions) != len(paths):
        raise ValueError(
            f"{folder}: prompt.txt has {len(captions)} lines, video.txt has {len(paths)}; expected one each per clip"
        )
    rows = enumerate(zip(paths, captions, strict=True), start=1)
    return [_entry(folder, path, caption, f"line {i} of {' + '.join(LINES)}") for i, (path, caption) in rows]


def _read_beside(videos: list[Path], captions: list[Path]) -> list[Entry]:
    stems = {video.stem for video in videos}
    orphans = [caption.name for caption in captions if caption.stem not in stems]
    if orphans:
        raise ValueError(f"{videos[0].parent}: no video beside {', '.join(orphans)}; add it or remove the text file")
    texts = {caption.stem: read_text(caption) for caption in captions}
    return [
        _entry(video.parent, video.name, texts.get(video.stem, ""), f"{video.stem}.txt is missing or empty")
        for video in videos
    ]


def _read_table(table: Path) -> list[Entry]:
    readers = {".csv": _csv_rows, ".jsonl": read_jsonl, ".parquet": _parquet_rows}
    if table.suffix.lower() not in readers:
        raise ValueError(f"{table}: expected a folder of clips or a table ({', '.join(TABLES)})")
    rows = readers[table.suffix.lower()](table)
    if not rows:
        raise ValueError(f"{table} has no rows")
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    path, caption = _column(table, columns, PATHS), _column(table, columns, CAPTIONS)
    return [
        _entry(
            table.parent,
            _cell(table, number, row, path),
            _cell(table, number, row, caption),
            f"row {number} of {table.name}",
        )
        for number, row in rows
    ]


def _column(table: Path, columns: list[str], names: tuple[str, ...]) -> str:
    matches = [name for name in names if name in columns]
    if len(matches) != 1:
        raise ValueError(f"{table} has the columns {', '.join(columns)}; expected exactly one of {', '.join(names)}")
    return matches[0]


def _cell(table: Path, number: int, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{table}, row {number}: {key} is {type(value).__name__}, expected text")
    return value or ""


def _csv_rows(table: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        rows = list(enumerate(csv.DictReader(io.StringIO(read_text(table))), start=1))
    except csv.Error as error:
        raise ValueError(f"{table} cannot be read as CSV ({error})") from error
    for number, row in rows:
        if None in row:
            raise ValueError(f"{table}, row {number}: more cells than columns; put captions with commas in quotes")
    return rows


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
