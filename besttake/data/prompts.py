"""Prompts: reading from files, and batches for the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from besttake.data.faults import read_each
from besttake.data.files import content_hash, line_of, read_jsonl, read_text
from besttake.data.hub import local_copy
from besttake.runtime.configuration import require
from besttake.runtime.embedded import embedded_prompts
from besttake.types import Prompt

Item = TypeVar("Item")


def read_prompts(path: str | Path, skip_bad: bool | None = None) -> list[str]:
    """Read the prompts of a `.txt` (one per line), a `.jsonl`, an embedded list, or a dataset ("hf:...", see `hub`).

    An object of a `.jsonl` has a "prompt" and optionally a "first_frame" (an image or video file, for image-to-video)
    and a "source" (a video file, for video-to-video); paths are relative to the list. Blank lines are skipped.

    Args:
        skip_bad: leave out lines without a prompt or with a missing file, with a warning; None: the caller has no such
            setting.

    Raises:
        ValueError: the file is missing, of another type or has no prompts; or, unless `skip_bad`, lists all lines
            without a prompt or with a missing file.
    """
    path = local_copy(embedded_prompts(str(path)), "prompts")
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        rows, folder = read_jsonl(path, skip_bad), Path(path).parent
        prompts = read_each(
            rows, lambda row: _prompt(row[1], folder), f"prompts of {path}", place=line_of(path), skip_bad=skip_bad
        )
    elif suffix == ".txt":
        prompts = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    else:
        raise ValueError(f'{path}: expected a .txt (one prompt per line) or a .jsonl (objects with "prompt")')
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def image_hashes(prompt: object) -> dict[str, str]:
    """Content hashes of a prompt's "first_frame" and "source", if it has them."""
    files = {name: getattr(prompt, name, None) for name in ("first_frame", "source")}
    return {name: content_hash(file) for name, file in files.items() if file}


def describe_prompt(item: object) -> str:
    """A text that identifies a prompt or another item, including its images."""
    pictures = image_hashes(item)
    return f"{item!r} with {pictures}" if pictures else repr(item)


def prompt_batches(prompts: Sequence[Item], batch: int, seed: int, step: int) -> list[tuple[int, Item]]:
    """The batch of prompts (or other items) of one step, as (index, prompt).

    Every epoch uses each prompt once, in a new random order. The result depends only on the arguments, so that every
    process computes the same batch. A batch across two epochs has no duplicates, unless there are fewer prompts than
    two batches.

    Args:
        batch: prompts per step.
        seed: 0 or above.
        step: 0 or above.
    """
    require(bool(prompts), "prompts", prompts, "one or more")
    require(batch >= 1, "batch", batch, "1 or more")
    chosen: list[tuple[int, Item]] = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, position_in_epoch = divmod(position, len(prompts))
        if not chosen or position_in_epoch == 0:
            order = _epoch_order(len(prompts), batch, seed, epoch)
        index = int(order[position_in_epoch])
        chosen.append((index, prompts[index]))
    return chosen


def _epoch_order(n: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch; prompts that the first batch already has from the previous epoch follow after it."""
    order = _shuffle(n, seed, epoch)
    overlap = epoch * n % batch
    if overlap == 0 or n < 2 * batch:
        return order
    previous = _shuffle(n, seed, epoch - 1)[-overlap:]
    head, rest = order[:batch], order[batch:]
    clash = np.isin(head, previous)
    return np.concatenate([head[~clash], head[clash], rest])


def _shuffle(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def _prompt(row: dict[str, Any], folder: Path) -> str:
    prompt, files = row.get("prompt"), {}
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'expected text under "prompt", got {prompt!r}')
    for what in ("first_frame", "source"):
        if file := row.get(what):
            files[what] = folder / str(file)
            if not files[what].is_file():
                raise ValueError(f'"{what}" is {files[what]}, which does not exist')
    return Prompt(prompt.strip(), **files) if files else prompt.strip()
