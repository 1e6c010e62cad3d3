"""What the readers and writers of this room share: atomic writing, and text and JSON lines that fail by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from besttake.data.faults import read_each


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; once the body is done it becomes `path`, or is removed if the body failed.

    Folders on the way are made. Whoever looks at `path` sees the old file or the whole new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises ValueError where it is missing or not UTF-8."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


def read_jsonl(path: str | Path, skip_bad: bool | None = None) -> list[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of every line that is not blank.

    Raises:
        ValueError: naming file and lines that hold no object, unless `skip_bad` (see `read_each`).
    """

    def read(numbered: tuple[int, str]) -> tuple[int, dict[str, Any]]:
        try:
            row = json.loads(numbered[1])
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"expected an object {{...}}, got {type(row).__name__}")
        return numbered[0], row

    lines = [numbered for numbered in enumerate(read_text(path).split("\n"), start=1) if numbered[1].strip()]
    return read_each(lines, read, f"lines of {path}", place=line_of(path), skip_bad=skip_bad)


def line_of(path: str | Path) -> Callable[[tuple[int, object]], str]:
    """What names a numbered line of a file."""
    return lambda row: f"{path}, line {row[0]}"
