"""Data from `datasets`: prompts, real clips and preference pairs of the hub, or of a folder that `datasets` reads.

    hf:USER/NAME                                   split "train", columns by their usual names
    hf:USER/NAME/SUBSET:validation                 another subset and split
    hf:USER/NAME:train?prompt=text&video=clip      columns by name
    hf:path/to/folder?prompt=text                  what `save_to_disk` wrote, or a folder of parquet files

It becomes files on this machine, of the kinds that `--data` takes otherwise, in ~/.cache/besttake, once.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from filelock import FileLock

Kind = Literal["prompts", "clips", "pairs"]

PREFIX = "hf:"

PROMPTS = ("prompt", "caption", "text")
COLUMNS: dict[Kind, dict[str, tuple[str, ...]]] = {
    "prompts": {"prompt": PROMPTS, "first_frame": ("first_frame", "image")},
    "clips": {"prompt": PROMPTS, "video": ("video", "mp4", "path", "file_name")},
    "pairs": {"prompt": PROMPTS, "chosen": ("chosen", "winner"), "rejected": ("rejected", "loser")},
}
"""What each kind of data needs, and the names that a column of it may have where none is given."""

OPTIONAL = ("first_frame",)
LISTS: dict[Kind, str] = {"prompts": "prompts.jsonl", "clips": "metadata.jsonl", "pairs": "pairs.jsonl"}
KEYS = {"video": "path", "chosen": "winner", "rejected": "losers"}
"""What our own files call a column."""


@dataclass(frozen=True)
class Source:
    """A source in its parts."""

    name: str
    subset: str | None
    split: str
    columns: dict[str, str]


def local_copy(source: str | Path, kind: Kind) -> str:
    """The file that holds the data of an `hf:` source; any other source is given back as it is.

    Raises:
        ValueError: `datasets` is not installed or cannot load it, it lacks a column, or a video is a URL.
    """
    if not str(source).startswith(PREFIX):
        return str(source)
    spec = parse(str(source), kind)
    try:
        data = _load(spec)
    except ImportError as error:
        raise ValueError(
            f"data is {source}, and datasets is not installed: pip install 'besttake[datasets]'"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} cannot be loaded: {error}") from error
    columns = _columns(str(source), data.column_names, spec, kind)
    identity = hashlib.sha256(f"{source} {kind} {data._fingerprint}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "besttake" / "datasets" / identity
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            rows = _rows(data, columns, part, Path(spec.name))
            (part / LISTS[kind]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            part.rename(folder)
    return str(folder / LISTS[kind])


def parse(source: str, kind: Kind) -> Source:
    """A source's parts; ValueError if there is no such column to be named."""
    place, _, query = source.removeprefix(PREFIX).partition("?")
    columns = dict(parse_qsl(query))
    if unknown := sorted(columns.keys() - COLUMNS[kind].keys()):
        raise ValueError(f"{source} names {', '.join(unknown)}; {kind} have {', '.join(COLUMNS[kind])}")
    name, _, split = place.partition(":")
    owner, *rest = name.split("/")
    subset = rest[1] if len(rest) == 2 and not Path(name).exists() else None
    return Source("/".join([owner, rest[0]]) if subset else name, subset, split or "train", columns)


def _load(source: Source) -> Any:
    """The rows of a source, its pictures and videos undecoded."""
    datasets = importlib.import_module("datasets")
    folder = Path(source.name)
    if (folder / "dataset_dict.json").exists():
        splits = datasets.load_from_disk(source.name)
        if source.split not in splits:
            raise ValueError(f"there is no split '{source.split}'; there are {', '.join(splits)}: hf:PLACE:SPLIT")
        data = splits[source.split]
    elif (folder / "state.json").exists():
        data = datasets.load_from_disk(source.name)
    else:
        data = datasets.load_dataset(source.name, source.subset, split=source.split)
    for name, feature in data.features.items():
        if isinstance(feature, (datasets.Video, datasets.Image)):
            data = data.cast_column(name, type(feature)(decode=False))
    return data


def _columns(source: str, there: list[str], spec: Source, kind: Kind) -> dict[str, str]:
    """The column of each thing that is needed, or optional and there."""
    found = {}
    for what, names in COLUMNS[kind].items():
        wanted = (spec.columns[what],) if what in spec.columns else names
        column = next((name for name in wanted if name in there), None)
        if column:
            found[what] = column
        elif what not in OPTIONAL or what in spec.columns:
            raise ValueError(
                f"{source} has no column {' or '.join(wanted)}; there are {', '.join(there)}: ?{what}=NAME"
            )
    return found


def _rows(data: Any, columns: Mapping[str, str], folder: Path, base: Path) -> Iterator[dict[str, Any]]:
    """Rows of our own files; videos and pictures are written into `folder`."""
    for number, row in enumerate(data):
        made = {}
        for what, column in columns.items():
            value = row[column]
            text = what == "prompt"
            made[KEYS.get(what, what)] = value if text else _file(value, folder, f"{number:06d}-{what}", base)
        yield made


def _file(value: Any, folder: Path, stem: str, base: Path) -> Any:
    """The path of a video or picture, which is written where the dataset holds its bytes; of a list, all of them."""
    if isinstance(value, list):
        return [_file(one, folder, f"{stem}-{i}", base) for i, one in enumerate(value)]
    if value is None:
        return None
    held: dict[str, Any] = (
        {"bytes": value} if isinstance(value, bytes) else {"path": value} if isinstance(value, str) else value
    )
    path = str(held.get("path") or "")
    if content := held.get("bytes"):
        name = stem + (Path(path).suffix or ".mp4")
        (folder / name).write_bytes(content)
        return name
    if "://" in path:
        raise ValueError(f"{path} is a URL; besttake reads videos that the dataset holds, or files on this machine")
    return str((base / path).resolve())
