"""The evaluation set of a run: the prompts of a file, or a held-out part of the run's own data.

It is chosen once before the first step and stored in the run folder, so that a resumed run trains on the same data and
an evaluation uses the same prompts, even if the files have changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from besttake.data.files import atomic, read_text
from besttake.data.pairs import PreferencePair
from besttake.data.prompts import read_prompts
from besttake.data.real import RealClip
from besttake.data.video import read_video
from besttake.models import Size, VideoModel
from besttake.runtime.embedded import embedded_family
from besttake.types import Prompt

log = logging.getLogger(__name__)

Item = TypeVar("Item")

HELD_OUT_FRACTION = 0.1
"""Fraction of a user's prompts, clips or pairs that is held out of training."""

MIN_HELD_OUT = 8
"""If fewer would be held out, none are: the set is too small for that."""

FILE = "evaluation_set.json"


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluation set of a run.

    Attributes:
        source: the file or list of the prompts.
        prompts: prompts without duplicates; with first frame for image-to-video models.
        clips: the real clip of each prompt, if the run trains on the user's real clips; otherwise empty.
        trained_on: number of prompts that are also trained on; None if unknown.
        held_out: texts of the run's own data that are held out of training.
    """

    source: str
    prompts: list[str]
    clips: list[Path] = field(default_factory=list)
    trained_on: int | None = None
    held_out: list[str] = field(default_factory=list)


def choose_evaluation_set(
    listed: str | None,
    data: str,
    items: Sequence[Any],
    count: int,
    seed: int,
    model: VideoModel,
    size: Size,
    spare: bool = True,
) -> EvaluationSet:
    """Choose the evaluation set: the prompts of a file or list, or else some of the run's own data.

    A tenth of the data, at most `count`, is held out of training. If that would be fewer than 8, none are held out, and
    prompts that are trained on are used.

    Args:
        listed: the file or list.
        items: the run's data: prompts, `RealClip`s or `PreferencePair`s.
        size: frames, height and width that a real clip must provide.
        spare: whether data may be held out; false for a resumed run that started without.

    Raises:
        ValueError: the file is missing or broken, or has fewer than two different prompts.
    """
    if listed:
        prompts = distinct(read_prompts(listed))[:count]
        if len(prompts) < 2:
            raise ValueError(f"evaluation.prompts: {listed} has a single prompt; expected 2 or more different ones")
        return EvaluationSet(listed, prompts, trained_on=len(set(prompts) & {text_of(item) for item in items}))
    texts = {text_of(item) for item in items}
    held_out_count = min(count, int(HELD_OUT_FRACTION * len(texts)))
    held_out = spare and held_out_count >= MIN_HELD_OUT
    chosen = sample_items(items, held_out_count if held_out else count, seed, model, size)
    prompts, clips = [prompt for prompt, _ in chosen], [clip for _, clip in chosen if clip]
    if held_out:
        log.info("%d of %d prompts of %s are held out of training for evaluation", len(prompts), len(texts), data)
        return EvaluationSet(data, prompts, clips, 0, [str(prompt) for prompt in prompts])
    log.info("evaluating on %d training prompts of %s: too few to hold any out", len(prompts), data)
    return EvaluationSet(data, prompts, clips, len(prompts))


def listed_count(listed: str | None, count: int) -> int:
    """Number of prompts of an evaluation, before the run's data are known: at most `count`, and those of the list."""
    if not listed or listed.startswith("hf:"):  # nothing is downloaded for a number
        return count
    try:
        return min(count, len(distinct(read_prompts(listed))))
    except ValueError:  # the list is not here
        return count


def sample_items(
    items: Sequence[Any], count: int, seed: int, model: VideoModel, size: Size
) -> list[tuple[str, Path | None]]:
    """Random prompts of a run's own data without duplicates, each with its real clip if it has one.

    Invalid items are skipped: training, which reads all of them, reports the errors.
    """
    found: list[tuple[str, Path | None]] = []
    used: set[str] = set()
    for index in np.random.default_rng(seed).permutation(len(items)):
        item = items[index]
        if len(found) == count:
            break
        if text_of(item) in used:
            continue
        prompt, clip = conditioned_prompt(item, model), item.path if isinstance(item, RealClip) else None
        try:
            model.check_prompts([prompt])
            if clip:
                read_video(clip, fps=model.fps, frames=size[0], size=size[1:])
        except ValueError:
            continue
        used.add(text_of(item))
        found.append((prompt, clip))
    return found


def without_held_out(items: Sequence[Item], held_out: Sequence[str]) -> list[Item]:
    """The data without the held-out items."""
    texts = set(held_out)
    return [item for item in items if text_of(item) not in texts]


def evaluation_set_of_run(run: Path, named: str | None, data: str, count: int) -> EvaluationSet:
    """The evaluation set of a finished run: the stored one, or the prompts of another file or list.

    Args:
        named: `evaluation.prompts`.

    Raises:
        ValueError: a file is missing or broken, or there is no evaluation set.
    """
    stored, family = read_set(run), embedded_family(data)
    if stored and not stored.prompts:
        stored = None
    if named is None and stored and (stored.source == data or count <= len(stored.prompts)):
        return _truncate(stored, count)
    listed = named or (stored.source if stored else family and f"{family}-test")
    if not listed:
        raise ValueError(f"{run} has no evaluation set; give prompts with --prompts")
    prompts = distinct(read_prompts(listed))[:count]
    if stored and set(prompts) <= set(stored.prompts):
        return replace(_truncate(stored, len(prompts)), source=listed, prompts=prompts, clips=[])
    return EvaluationSet(listed, prompts)


def _truncate(chosen: EvaluationSet, count: int) -> EvaluationSet:
    """The first `count` prompts; `trained_on` stays known if none or all are trained on."""
    known = {0: 0, len(chosen.prompts): count}
    trained_on = known.get(chosen.trained_on or 0) if count < len(chosen.prompts) else chosen.trained_on
    return replace(chosen, prompts=chosen.prompts[:count], clips=chosen.clips[:count], trained_on=trained_on)


def distinct(prompts: Sequence[str]) -> list[str]:
    """The prompts without duplicates, whose videos would be equal."""
    return list(dict.fromkeys(prompts))


def text_of(item: Any) -> str:
    """The text of a prompt, a real clip or a pair."""
    if isinstance(item, RealClip):
        return item.caption
    return item.prompt if isinstance(item, PreferencePair) else item


def conditioned_prompt(item: Any, model: VideoModel) -> str:
    """An item's prompt, for image-to-video models with its clip as first frame."""
    clip = item.path if isinstance(item, RealClip) else item.winner if isinstance(item, PreferencePair) else None
    return Prompt(text_of(item), first_frame=clip) if clip and model.needs_first_frame else text_of(item)


def write_set(folder: Path, chosen: EvaluationSet) -> None:
    """Write `evaluation_set.json` into a run folder."""
    rows = list(_rows(chosen))
    with atomic(folder / FILE) as part:
        part.write_text(json.dumps({**vars(chosen), "clips": len(chosen.clips), "prompts": rows}, indent=1))


def read_set(folder: Path) -> EvaluationSet | None:
    """Read `evaluation_set.json`; None if there is none.

    Raises:
        ValueError: the file is broken.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        content = json.loads(read_text(file))
        prompts = [_prompt(row) for row in content["prompts"]]
        clips = [Path(row["clip"]) for row in content["prompts"] if "clip" in row]
        return EvaluationSet(content["source"], prompts, clips, content["trained_on"], content["held_out"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is broken ({error!r}); remove it and give --prompts") from error


def _rows(chosen: EvaluationSet) -> Iterator[dict[str, str]]:
    for index, prompt in enumerate(chosen.prompts):
        row = {"prompt": str(prompt)}
        if isinstance(prompt, Prompt):
            files = {"first_frame": prompt.first_frame, "source": prompt.source}
            row |= {name: str(file.resolve()) for name, file in files.items() if file}
        yield row | ({"clip": str(chosen.clips[index].resolve())} if chosen.clips else {})


def _prompt(row: dict[str, str]) -> str:
    files = {name: Path(row[name]) for name in ("first_frame", "source") if name in row}
    return Prompt(row["prompt"], **files) if files else row["prompt"]
