"""What the readers and writers of this room share: atomic writing, and text and JSON lines that fail by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of every line that is not blank. Raises ValueError naming file and line."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object {{...}}, got {type(row).__name__}")
        rows.append((number, row))
    return rows
