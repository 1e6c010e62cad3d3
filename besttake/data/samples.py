"""Videos to be scored, and what they were asked to show: folders of them, and the lists that `generate` writes.

A folder's prompts are in a file, `--prompts`: a table of paths and prompts, or a list of prompts. Videos find theirs in
a list by name (`a cat plays-0.mp4`, as VBench has them, or `00007-0.mp4`, as `generate` has), or one after the other
where there are as many of both. Without a file, prompts are looked for in the folder, and at last in the videos' names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from besttake.data.faults import read_each
from besttake.data.files import line_of, read_jsonl
from besttake.data.layouts import PATHS, TABLES, VIDEOS, Entry, find_entries
from besttake.data.prompts import read_prompts
from besttake.runtime.embedded import embedded_prompts

log = logging.getLogger(__name__)

LISTS = ("prompts.txt", "prompt.txt")
"""Prompts of the videos beside them, unless there is a list of videos too."""


@dataclass(frozen=True)
class Samples:
    """Videos of one prompt.

    Attributes:
        size: (height, width) at which they are to be seen; None = the files' own.
        fps: frames a second; None = the files' own.
        policy: the model and adapter that shot them, if anybody has told.
        folder: where they were found; "" for those of a list.
    """

    prompt: str
    files: tuple[Path, ...]
    size: tuple[int, int] | None = None
    fps: float | None = None
    policy: str = ""
    folder: str = ""


def read_takes(path: Path, folder: str = "") -> list[Samples]:
    """The lines of a `takes.jsonl`: {"prompt": "...", "takes": ["a.mp4", "b.mp4"]}, paths relative to it.

    "size" [height, width], "fps" and "policy" may be there.

    Raises:
        ValueError: naming file and line of all rows of which a key is missing or no such thing, or a video is not
            there; or there are no takes.
    """
    found = read_each(
        read_jsonl(path), lambda row: _samples(row[1], path.parent, folder), f"rows of {path}", place=line_of(path)
    )
    if not found:
        raise ValueError(f"{path} lists no takes")
    return found


def read_folder(folder: Path, prompts: str | None = None) -> list[Samples]:
    """The videos in a folder and those below it, by prompt.

    Args:
        prompts: file of their prompts, or an embedded list; by default they are looked for in the folder.

    Raises:
        ValueError: there is no such folder, it holds no videos, or it cannot be told which prompt is whose.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of videos; of a list of takes, give --takes {folder}")
    if prompts is None and (folder / "takes.jsonl").is_file():
        return read_takes(folder / "takes.jsonl", str(folder))
    found = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS and not _hidden(path, folder)]
    videos = sorted((path for path in found if path.is_file()), key=lambda path: _natural(path.relative_to(folder)))
    if not videos:
        raise ValueError(f"{folder} holds no videos ({', '.join(VIDEOS)})")
    told = _told(folder, videos, prompts)
    by_prompt: dict[str, list[Path]] = {}
    for video, prompt in zip(videos, told, strict=True):
        by_prompt.setdefault(prompt, []).append(video)
    return [Samples(prompt, tuple(files), folder=str(folder)) for prompt, files in by_prompt.items()]


def _samples(row: dict[str, Any], folder: Path, source: str) -> Samples:
    if missing := [key for key in ("prompt", "takes") if not row.get(key)]:
        raise ValueError(f'"{missing[0]}" is missing; expected {{"prompt": "...", "takes": ["a.mp4", "b.mp4"]}}')
    prompt, takes, size, fps = row["prompt"], row["takes"], row.get("size"), row.get("fps")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'"prompt" is {prompt!r}, expected text')
    if not isinstance(takes, list) or not all(isinstance(file, str) for file in takes):
        raise ValueError(f'"takes" is {takes!r}, expected a list of video files')
    if lost := [file for file in takes if not (folder / file).is_file()]:
        raise ValueError(f'"takes" names {folder / lost[0]}, which is not there')
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(_positive(x, int) for x in size)):
        raise ValueError(f'"size" is {size!r}, expected [height, width]')
    if fps is not None and not _positive(fps, (int, float)):
        raise ValueError(f'"fps" is {fps!r}, expected frames a second')
    files = tuple(folder / file for file in takes)
    return Samples(prompt.strip(), files, tuple(size) if size else None, fps, str(row.get("policy", "")), source)


def _positive(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < float("inf")


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _natural(path: Path) -> list[tuple[int, str]]:
    """An order in which 10.mp4 comes after 9.mp4."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


# Which prompt is whose -----------------------------------------------------------------------------------------------


def _told(folder: Path, videos: list[Path], prompts: str | None) -> list[str]:
    """The prompt of each video."""
    if prompts is not None:
        file = Path(embedded_prompts(prompts))
        if _is_table(file):
            return _of_table(folder, videos, find_entries(file), file)
        return _of_list(folder, videos, file)
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    if lists and not any((folder / name).is_file() for name in ("video.txt", "videos.txt")):
        return _of_list(folder, videos, lists[0])
    if any(file.suffix.lower() in (*TABLES, ".txt", ".json", ".tsv") for file in folder.iterdir()):
        return _of_table(folder, videos, find_entries(folder), folder)
    return _of_names(folder, videos)


def _is_table(file: Path) -> bool:
    """Whether a file tells of videos, and not of prompts alone."""
    if file.suffix.lower() == ".jsonl":
        return any(key in row for _, row in read_jsonl(file) for key in PATHS)
    return file.suffix.lower() != ".txt"


def _of_table(folder: Path, videos: list[Path], entries: Sequence[Entry], table: Path) -> list[str]:
    """By path; or by name alone, where a table was written for videos that lay elsewhere."""
    by_path = {entry.path.resolve(): entry.caption for entry in entries}
    by_name: dict[str, set[str]] = {}
    for entry in entries:
        by_name.setdefault(entry.path.name, set()).add(entry.caption)
    told = []
    for video in videos:
        named = by_name.get(video.name, set())
        told.append(by_path.get(video.resolve()) or (next(iter(named)) if len(named) == 1 else ""))
    if lost := [video for video, prompt in zip(videos, told, strict=True) if not prompt]:
        raise ValueError(
            f"{table} has no prompt for {len(lost)} of the {len(videos)} videos in {folder}, such as "
            f"{', '.join(str(video.relative_to(folder)) for video in lost[:3])}"
        )
    return told


def _of_list(folder: Path, videos: list[Path], file: Path) -> list[str]:
    """By name, or one after the other."""
    prompts = read_prompts(file)
    known = {_words(prompt): prompt for prompt in prompts}
    named = [known.get(_words(video.stem)) or known.get(_words(_without_number(video.stem))) for video in videos]
    if len(known) == len(set(prompts)) and all(named):
        return [prompt for prompt in named if prompt]
    numbers = [re.fullmatch(r"(\d{5})-\d+", video.stem) for video in videos]
    places = [int(number[1]) for number in numbers if number]
    if len(places) == len(videos) and max(places) < len(prompts):
        return [prompts[place] for place in places]
    if len(prompts) in (1, len(videos)) and not any(named):
        log.info("the prompts of %s are those of the videos in %s, in the order of their names", file, folder)
        return prompts * (len(videos) // len(prompts))
    by_name = f"; {len([name for name in named if name])} are named by a prompt" if any(named) else ""
    raise ValueError(
        f"{folder} holds {len(videos)} videos, and {file} {len(prompts)} prompts{by_name}: it cannot be told which is "
        "whose; give as many of both, name all videos by their prompts (PROMPT-0.mp4), or give a table of path and "
        "prompt"
    )


def _of_names(folder: Path, videos: list[Path]) -> list[str]:
    told = [_without_number(video.stem).strip() for video in videos]
    if not all(re.search(r"[^\W\d_]+ .*[^\W\d_]", prompt) for prompt in told):
        raise ValueError(
            f"{folder} holds {len(videos)} videos and no prompts; give --prompts FILE: one a line, in the order of the "
            "videos' names, or a table (.csv, .jsonl) of path and prompt"
        )
    log.info("the names of the videos in %s are taken for their prompts, the first for '%s'", folder, told[0])
    return told


def _without_number(name: str) -> str:
    """`a cat plays-3`, the fourth take, as `a cat plays`."""
    return re.sub(r"[-_ ]\d+$", "", name)


def _words(text: str) -> str:
    """What is left of a prompt in every file's name."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
