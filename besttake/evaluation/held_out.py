"""What a run is measured on: the prompts of a file, or some of its own data, a part of which is not trained on for it.

It is chosen once, before the first step, and written into the run's folder: a resumed run trains on the same data, and
a report measures on the same prompts, whatever has become of the files.
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

SHARE = 0.1
"""Of a user's prompts, clips or pairs: so many are held out of training."""

LEAST = 8
"""Where it would be fewer, none is held out: so few tell nothing, and a small set is not to spare."""

FILE = "evaluation_set.json"


@dataclass(frozen=True)
class EvaluationSet:
    """What a run is measured on.

    Attributes:
        source: the file or list that the prompts are of.
        prompts: none twice; each with its first frame where the model is shown one.
        clips: the real clip of each prompt, where the run learns from real clips of its user's; otherwise none.
        trained_on: how many of the prompts are trained on as well; None where nobody has counted.
        held_out: texts of the run's own data that are left out of training.
    """

    source: str
    prompts: list[str]
    clips: list[Path] = field(default_factory=list)
    trained_on: int | None = None
    held_out: list[str] = field(default_factory=list)


def evaluation_set(
    listed: str | None,
    data: str,
    items: Sequence[Any],
    count: int,
    seed: int,
    model: VideoModel,
    size: Size,
    spare: bool = True,
) -> EvaluationSet:
    """The prompts of a file or list; or, if there is none, some of the run's own data.

    A tenth of them is held out of training, at most `count`; where that would be fewer than 8, none is, and some that
    are trained on are taken.

    Args:
        listed: the file or list.
        items: the run's data: prompts, `RealClip`s or `PreferencePair`s.
        size: frames, height and width, which a real clip must have.
        spare: whether any may be held out; a run that has begun with all of them goes on with all.

    Raises:
        ValueError: the file is missing or broken, or all its lines are one prompt.
    """
    if listed:
        prompts = distinct(read_prompts(listed))[:count]
        if len(prompts) < 2:
            raise ValueError(f"evaluation.prompts: {listed} holds a single prompt; expected at least 2 that differ")
        return EvaluationSet(listed, prompts, trained_on=len(set(prompts) & {text_of(item) for item in items}))
    texts = {text_of(item) for item in items}
    tenth = min(count, int(SHARE * len(texts)))
    held_out = spare and tenth >= LEAST
    chosen = examples(items, tenth if held_out else count, seed, model, size)
    prompts, clips = [prompt for prompt, _ in chosen], [clip for _, clip in chosen if clip]
    if held_out:
        log.info("%d of %d prompts of %s are held out of training, to measure on", len(prompts), len(texts), data)
        return EvaluationSet(data, prompts, clips, 0, [str(prompt) for prompt in prompts])
    log.info("%d prompts of %s will be measured on, which are trained on: there are few", len(prompts), data)
    return EvaluationSet(data, prompts, clips, len(prompts))


def examples(
    items: Sequence[Any], count: int, seed: int, model: VideoModel, size: Size
) -> list[tuple[str, Path | None]]:
    """Prompts of a run's own data in an order of their own, none twice, each with its real clip if it has one.

    What cannot be shot or read is passed over: training, which is to see all of it, says what is wrong with it.
    """
    found: list[tuple[str, Path | None]] = []
    seen: set[str] = set()
    for place in np.random.default_rng(seed).permutation(len(items)):
        item = items[place]
        if len(found) == count:
            break
        if text_of(item) in seen:
            continue
        prompt, clip = shown(item, model), item.path if isinstance(item, RealClip) else None
        try:
            model.check_prompts([prompt])
            if clip:
                read_video(clip, fps=model.fps, frames=size[0], size=size[1:])
        except ValueError:
            continue
        seen.add(text_of(item))
        found.append((prompt, clip))
    return found


def left_to_train_on(items: Sequence[Item], held_out: Sequence[str]) -> list[Item]:
    """The data without the items with these texts."""
    texts = set(held_out)
    return [item for item in items if text_of(item) not in texts]


def chosen_set(run: Path, named: str | None, data: str, count: int) -> EvaluationSet:
    """What a finished run is measured on: what was chosen when it began, or the prompts of another file or list.

    Args:
        named: `evaluation.prompts`.

    Raises:
        ValueError: a file is missing or broken, or nothing was chosen.
    """
    before, family = read_set(run), embedded_family(data)
    if before and not before.prompts:
        before = None
    if named is None and before and (before.source == data or count <= len(before.prompts)):
        return _first(before, count)
    listed = named or (before.source if before else family and f"{family}-test")
    if not listed:
        raise ValueError(f"{run} does not tell which prompts it is measured on; name them with --prompts")
    prompts = distinct(read_prompts(listed))[:count]
    if before and set(prompts) <= set(before.prompts):
        return replace(_first(before, len(prompts)), source=listed, prompts=prompts, clips=[])
    return EvaluationSet(listed, prompts)


def _first(chosen: EvaluationSet, count: int) -> EvaluationSet:
    """Some of it; how many of them are trained on is known if none or all are."""
    known = {0: 0, len(chosen.prompts): count}
    trained_on = known.get(chosen.trained_on or 0) if count < len(chosen.prompts) else chosen.trained_on
    return replace(chosen, prompts=chosen.prompts[:count], clips=chosen.clips[:count], trained_on=trained_on)


def distinct(prompts: Sequence[str]) -> list[str]:
    """The prompts, none twice: from the same noise it would be the same video."""
    return list(dict.fromkeys(prompts))


def text_of(item: Any) -> str:
    """What an item of a run's data says: of a prompt, a real clip or a pair."""
    if isinstance(item, RealClip):
        return item.caption
    return item.prompt if isinstance(item, PreferencePair) else item


def shown(item: Any, model: VideoModel) -> str:
    """An item's prompt: an image-to-video model is shown how its clip begins."""
    clip = item.path if isinstance(item, RealClip) else item.winner if isinstance(item, PreferencePair) else None
    return Prompt(text_of(item), first_frame=clip) if clip and model.needs_first_frame else text_of(item)


def write_set(folder: Path, chosen: EvaluationSet) -> None:
    """`evaluation_set.json` in a run's folder."""
    rows = list(_rows(chosen))
    with atomic(folder / FILE) as part:
        part.write_text(json.dumps({**vars(chosen), "clips": len(chosen.clips), "prompts": rows}, indent=1))


def read_set(folder: Path) -> EvaluationSet | None:
    """What `write_set` wrote; None if it has not.

    Raises:
        ValueError: the file is broken.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        told = json.loads(read_text(file))
        prompts = [_prompt(row) for row in told["prompts"]]
        clips = [Path(row["clip"]) for row in told["prompts"] if "clip" in row]
        return EvaluationSet(told["source"], prompts, clips, told["trained_on"], told["held_out"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is broken ({error!r}); remove it, and name what to measure on (--prompts)") from error


def _rows(chosen: EvaluationSet) -> Iterator[dict[str, str]]:
    for place, prompt in enumerate(chosen.prompts):
        row = {"prompt": str(prompt)}
        if isinstance(prompt, Prompt):
            files = {"first_frame": prompt.first_frame, "source": prompt.source}
            row |= {name: str(file.resolve()) for name, file in files.items() if file}
        yield row | ({"clip": str(chosen.clips[place].resolve())} if chosen.clips else {})


def _prompt(row: dict[str, str]) -> str:
    files = {name: Path(row[name]) for name in ("first_frame", "source") if name in row}
    return Prompt(row["prompt"], **files) if files else row["prompt"]
