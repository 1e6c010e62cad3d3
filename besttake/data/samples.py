"""Videos with their prompts: folders of videos, and the `samples.jsonl` that `besttake generate` writes.

A folder's prompts come from a file (`--prompts`): a table of paths and prompts, or a list of prompts. Videos are
matched to a list by name (`a cat plays-0.mp4`, as in VBench, or `00007-0.mp4`, as `generate` writes), or in order if
there are as many videos as prompts. Without a file, prompts are taken from a file in the folder, or from the videos'
names.
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
from besttake.data.layouts import PATH_COLUMNS, TABLE_SUFFIXES, VIDEO_SUFFIXES, ListedClip, list_clips
from besttake.data.prompts import read_prompts
from besttake.runtime.embedded import embedded_prompts
from besttake.runtime.renamed import with_new_keys

log = logging.getLogger(__name__)

LISTS = ("prompts.txt", "prompt.txt")
"""Files with the prompts of a folder's videos, unless it also has a list of videos."""


@dataclass(frozen=True)
class Samples:
    """Videos of one prompt.

    Attributes:
        size: (height, width) to resize them to; None = the files' own.
        fps: frames a second; None = the files' own.
        policy: the model and adapter that generated them, if known.
        folder: the folder of the videos; "" for those of a `samples.jsonl`.
    """

    prompt: str
    files: tuple[Path, ...]
    size: tuple[int, int] | None = None
    fps: float | None = None
    policy: str = ""
    folder: str = ""


def read_samples(path: Path, folder: str = "") -> list[Samples]:
    """Read a `samples.jsonl`: lines {"prompt": "...", "videos": ["a.mp4", "b.mp4"]}, paths relative to the file.

    "size" [height, width], "fps" and "policy" are optional.

    Raises:
        ValueError: lists file and line of all rows with a missing or invalid key or a missing video; or there are no
            rows.
    """
    found = read_each(
        read_jsonl(path), lambda row: _samples(row[1], path.parent, folder), f"rows of {path}", place=line_of(path)
    )
    if not found:
        raise ValueError(f"{path} lists no videos")
    return found


def read_folder(folder: Path, prompts: str | None = None) -> list[Samples]:
    """The videos in a folder and its subfolders, by prompt.

    Args:
        prompts: file of their prompts, or an embedded list; default: a file in the folder, or the videos' names.

    Raises:
        ValueError: the folder is missing, has no videos, or the videos cannot be matched to prompts.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of videos; for a samples.jsonl, use --samples {folder}")
    for name in ("samples.jsonl", "takes.jsonl"):  # the latter is its former name
        if prompts is None and (folder / name).is_file():
            return read_samples(folder / name, str(folder))
    found = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and not _hidden(path, folder)]
    videos = sorted((path for path in found if path.is_file()), key=lambda path: _natural(path.relative_to(folder)))
    if not videos:
        raise ValueError(f"{folder} has no videos ({', '.join(VIDEO_SUFFIXES)})")
    found_prompts = _find_prompts(folder, videos, prompts)
    by_prompt: dict[str, list[Path]] = {}
    for video, prompt in zip(videos, found_prompts, strict=True):
        by_prompt.setdefault(prompt, []).append(video)
    return [Samples(prompt, tuple(files), folder=str(folder)) for prompt, files in by_prompt.items()]


def _samples(row: dict[str, Any], folder: Path, source: str) -> Samples:
    row = with_new_keys(row)
    if missing := [key for key in ("prompt", "videos") if not row.get(key)]:
        raise ValueError(f'"{missing[0]}" is missing; expected {{"prompt": "...", "videos": ["a.mp4", "b.mp4"]}}')
    prompt, videos, size, fps = row["prompt"], row["videos"], row.get("size"), row.get("fps")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'"prompt" is {prompt!r}, expected text')
    if not isinstance(videos, list) or not all(isinstance(file, str) for file in videos):
        raise ValueError(f'"videos" is {videos!r}, expected a list of video files')
    if missing_files := [file for file in videos if not (folder / file).is_file()]:
        raise ValueError(f'"videos" names {folder / missing_files[0]}, which does not exist')
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(_positive(x, int) for x in size)):
        raise ValueError(f'"size" is {size!r}, expected [height, width]')
    if fps is not None and not _positive(fps, (int, float)):
        raise ValueError(f'"fps" is {fps!r}, expected frames a second')
    files = tuple(folder / file for file in videos)
    return Samples(prompt.strip(), files, tuple(size) if size else None, fps, str(row.get("policy", "")), source)


def _positive(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < float("inf")


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key for natural order: 10.mp4 after 9.mp4."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


# Matching videos to prompts -------------------------------------------------------------------------------------------


def _find_prompts(folder: Path, videos: list[Path], prompts: str | None) -> list[str]:
    """The prompt of each video."""
    if prompts is not None:
        file = Path(embedded_prompts(prompts))
        if _is_table(file):
            return _prompts_from_table(folder, videos, list_clips(file), file)
        return _prompts_from_list(folder, videos, file)
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    if lists and not any((folder / name).is_file() for name in ("video.txt", "videos.txt")):
        return _prompts_from_list(folder, videos, lists[0])
    if any(file.suffix.lower() in (*TABLE_SUFFIXES, ".txt", ".json", ".tsv") for file in folder.iterdir()):
        return _prompts_from_table(folder, videos, list_clips(folder), folder)
    return _prompts_from_names(folder, videos)


def _is_table(file: Path) -> bool:
    """Whether a file lists videos with their prompts, instead of prompts alone."""
    if file.suffix.lower() == ".jsonl":
        return any(key in row for _, row in read_jsonl(file) for key in PATH_COLUMNS)
    return file.suffix.lower() != ".txt"


def _prompts_from_table(folder: Path, videos: list[Path], clips: Sequence[ListedClip], table: Path) -> list[str]:
    """Match by path, or by file name alone if the table was written for another folder."""
    by_path = {clip.path.resolve(): clip.caption for clip in clips}
    by_name: dict[str, set[str]] = {}
    for clip in clips:
        by_name.setdefault(clip.path.name, set()).add(clip.caption)
    found_prompts = []
    for video in videos:
        named = by_name.get(video.name, set())
        found_prompts.append(by_path.get(video.resolve()) or (next(iter(named)) if len(named) == 1 else ""))
    if missing_files := [video for video, prompt in zip(videos, found_prompts, strict=True) if not prompt]:
        raise ValueError(
            f"{table} has no prompt for {len(missing_files)} of the {len(videos)} videos in {folder}, such as "
            f"{', '.join(str(video.relative_to(folder)) for video in missing_files[:3])}"
        )
    return found_prompts


def _prompts_from_list(folder: Path, videos: list[Path], file: Path) -> list[str]:
    """Match by name, or in order."""
    prompts = read_prompts(file)
    known = {_normalised(prompt): prompt for prompt in prompts}
    named = [
        known.get(_normalised(video.stem)) or known.get(_normalised(_without_number(video.stem))) for video in videos
    ]
    if len(known) == len(set(prompts)) and all(named):
        return [prompt for prompt in named if prompt]
    numbers = [re.fullmatch(r"(\d{5})-\d+", video.stem) for video in videos]
    places = [int(number[1]) for number in numbers if number]
    if len(places) == len(videos) and max(places) < len(prompts):
        return [prompts[place] for place in places]
    if len(prompts) in (1, len(videos)) and not any(named):
        log.info("the prompts of %s are assigned to the videos in %s in the order of their names", file, folder)
        return prompts * (len(videos) // len(prompts))
    by_name = f"; {len([name for name in named if name])} videos are named by a prompt" if any(named) else ""
    raise ValueError(
        f"{folder} has {len(videos)} videos, and {file} {len(prompts)} prompts{by_name}: it is unclear which belong "
        "together; give as many of both, name all videos by their prompts (PROMPT-0.mp4), or give a table of path and "
        "prompt"
    )


def _prompts_from_names(folder: Path, videos: list[Path]) -> list[str]:
    found_prompts = [_without_number(video.stem).strip() for video in videos]
    if not all(re.search(r"[^\W\d_]+ .*[^\W\d_]", prompt) for prompt in found_prompts):
        raise ValueError(
            f"{folder} has {len(videos)} videos and no prompts; give --prompts FILE: one prompt per line, in the order "
            "of the videos' names, or a table (.csv, .jsonl) of path and prompt"
        )
    log.info("the names of the videos in %s are used as prompts, the first as '%s'", folder, found_prompts[0])
    return found_prompts


def _without_number(name: str) -> str:
    """`a cat plays-3` as `a cat plays`."""
    return re.sub(r"[-_ ]\d+$", "", name)


def _normalised(text: str) -> str:
    """A text in lower case without punctuation, for comparing prompts and file names."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
