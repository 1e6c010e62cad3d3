"""What all readers and writers share: atomic writing, hashes of content, and text and JSON lines that fail by name."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from besttake.data.faults import read_each

WHOLE = 1 << 30
"""Bytes up to which all of a file is hashed."""

PLACES, PIECE = 64, 1 << 14
"""How many places of a larger file are looked at, from its first byte to its last, and bytes of each."""

UNREAD = (".bin", ".h5", ".md", ".msgpack", ".onnx")
"""Endings of files beside safetensors that nothing is read from."""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; once the body is done it becomes `path`, or is removed if the body failed.

    Folders on the way are made. Whoever looks at `path` sees the old file or the whole new one, never a part. Whatever
    writes it (safetensors lets nobody but the owner read its files), its mode is the one that the umask asks for.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a number of a process alone would do on one machine, and not on several that share a disk
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a .safetensors, `atomic`; equal tensors and metadata make equal bytes."""
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata)
        sort_metadata(temporary)


def set_file_mode(folder: str | Path) -> None:
    """Give what other libraries have written to a folder the mode that the umask asks for, and metadata in order."""
    with atomic(Path(folder) / ".mode") as new:
        mode = new.stat().st_mode
    (Path(folder) / ".mode").unlink()
    for path in Path(folder).rglob("*"):
        if path.suffix == ".safetensors":
            sort_metadata(path)
        if path.is_file() and path.stat().st_mode != mode:
            path.chmod(mode)


def sort_metadata(path: Path) -> None:
    """Put the metadata of a .safetensors in order: safetensors itself writes them in one that changes by the run."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        metadata = head.get("__metadata__", {})
        if list(metadata) == sorted(metadata):
            return
        head["__metadata__"] = dict(sorted(metadata.items()))
        told = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(told) == length:  # else another library has written it, with blanks of its own
            file.seek(8)
            file.write(told)


def content_hash(path: str | Path, whole: int = WHOLE) -> str:
    """A hash of a file's content, whatever its name and age: of its size and, up to `whole` bytes, of all of it.

    Of a larger file it is of `PLACES` pieces, evenly from the first byte to the last: a film or a network that was
    encoded or trained anew differs in all of them, while a few bytes changed by hand in between are not seen.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        found = hashlib.sha256(f"{size}\n".encode())
        if size <= whole:
            file.seek(0)
            while part := file.read(1 << 20):
                found.update(part)
        else:
            for place in range(PLACES):
                file.seek((size - PIECE) * place // (PLACES - 1))
                found.update(file.read(PIECE))
    return found.hexdigest()


def quick_hash(folder: str | Path) -> str:
    """A hash of a folder of weights: names and `content` of the files in it that are read.

    Where there are safetensors, other forms of the weights are not read; nor are variants ("model.fp16.safetensors").
    """
    files = sorted(path for path in Path(folder).rglob("[!.]*") if path.is_file())
    unread = UNREAD if any(path.suffix == ".safetensors" for path in files) else ()
    found = hashlib.sha256()
    for path in files:
        if path.suffix not in unread and not (path.suffix == ".safetensors" and "." in path.stem):
            found.update(f"{path.relative_to(folder)} {content_hash(path)}\n".encode())
    return found.hexdigest()


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
