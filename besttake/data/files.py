"""File helpers: atomic writing, content hashes, and readers of text and JSON lines whose errors name the file."""

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

FULL_HASH_BYTES = 1 << 30
"""Files up to this size in bytes are hashed completely."""

SAMPLES, SAMPLE_BYTES = 64, 1 << 14
"""Number of evenly spaced samples hashed of a larger file, and bytes per sample."""

IGNORED_SUFFIXES = (".bin", ".h5", ".md", ".msgpack", ".onnx")
"""Suffixes of files that are ignored in a folder with safetensors."""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` when the body succeeds and is removed when it fails.

    Parent folders are created. Readers of `path` see the old file or the complete new one. The file gets the mode of
    the umask, whatever library writes it (safetensors makes its files readable for the owner only).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the process id alone is not unique among machines that share a disk
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
    """Write a .safetensors atomically; equal tensors and metadata give equal bytes."""
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata)
        sort_metadata(temporary)


def normalise_files(folder: str | Path) -> None:
    """Set the mode of all files in a folder according to the umask, and sort the metadata of its safetensors."""
    with atomic(Path(folder) / ".mode") as new:
        mode = new.stat().st_mode
    (Path(folder) / ".mode").unlink()
    for path in Path(folder).rglob("*"):
        if path.suffix == ".safetensors":
            sort_metadata(path)
        if path.is_file() and path.stat().st_mode != mode:
            path.chmod(mode)


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a .safetensors, which safetensors writes in random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        metadata = head.get("__metadata__", {})
        if list(metadata) == sorted(metadata):
            return
        head["__metadata__"] = dict(sorted(metadata.items()))
        encoded = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(encoded) == length:  # otherwise another library has written it, with other blanks
            file.seek(8)
            file.write(encoded)


def content_hash(path: str | Path, full_bytes: int = FULL_HASH_BYTES) -> str:
    """A hash of a file's size and content, independent of its name and time.

    Files above `full_bytes` are sampled at `SAMPLES` evenly spaced places: a video that was encoded again, or a network
    that was trained again, differs in all of them, but a few bytes changed in between are not detected.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(f"{size}\n".encode())
        if size <= full_bytes:
            file.seek(0)
            while part := file.read(1 << 20):
                digest.update(part)
        else:
            for sample in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def quick_hash(folder: str | Path) -> str:
    """A hash of a folder of weights: names and content hashes of the files that are loaded from it.

    If there are safetensors, other weight formats are ignored, and so are variants ("model.fp16.safetensors").
    """
    files = sorted(path for path in Path(folder).rglob("[!.]*") if path.is_file())
    ignored = IGNORED_SUFFIXES if any(path.suffix == ".safetensors" for path in files) else ()
    digest = hashlib.sha256()
    for path in files:
        if path.suffix not in ignored and not (path.suffix == ".safetensors" and "." in path.stem):
            digest.update(f"{path.relative_to(folder)} {content_hash(path)}\n".encode())
    return digest.hexdigest()


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file without byte order mark; ValueError if it is missing or not UTF-8."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


def read_jsonl(path: str | Path, skip_bad: bool | None = None) -> list[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every non-blank line.

    Raises:
        ValueError: lists the lines that are no JSON object, unless `skip_bad` (see `read_each`).
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
    """A function that names a numbered line of a file."""
    return lambda row: f"{path}, line {row[0]}"
