"""The evaluation's clips for the page: those of one prompt side by side, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from besttake.data.video import read_video, to_uint8
from besttake.report.folder import COLUMNS, RunFolder

MOST_CLIPS = 16
"""Largest number of prompts with clips in a page."""


@dataclass(frozen=True)
class Clip:
    """One video of a card; `video` and `poster` are data URIs."""

    column: str
    label: str
    number: int
    video: str
    poster: str


@dataclass(frozen=True)
class Card:
    """The clips of one prompt, before and after training and real."""

    caption: str
    clips: list[Clip]


def clip_cards(run: RunFolder) -> tuple[list[Card], list[str]]:
    """A card for each prompt, and sentences on what could not be shown."""
    numbers = sorted(set().union(*run.clips.values()))
    cards, remarks = [], []
    for index in numbers[:MOST_CLIPS]:
        clips = []
        for column in COLUMNS:
            file = run.clips[column].get(index)
            try:
                clips += [_clip(file, column, index)] if file else []
            except ValueError as error:
                remarks.append(f"One clip is left out: {error}")
        if clips:
            cards.append(Card(_caption(run, index), clips))
    if len(numbers) > MOST_CLIPS:
        remarks.append(f"The first {MOST_CLIPS} of {len(numbers)} prompts are shown; the others are in evaluation/.")
    available = [column for column in COLUMNS if run.clips[column]]
    missing = [column for column in COLUMNS[:2] if column not in available]
    if cards and missing:
        remarks.append(f"There are no clips from {' or '.join(missing)} training in the run folder.")
    return cards, remarks


def _caption(run: RunFolder, index: int) -> str:
    return run.prompts[index] if index < len(run.prompts) else f"clip {index}"


def _clip(file: Path, column: str, number: int) -> Clip:
    """
    Raises:
        ValueError: the file cannot be read as a video.
    """
    label = "real clip" if column == "real" else column
    return Clip(column, label, number, _uri("video/mp4", file.read_bytes()), _poster(file))


def _poster(file: Path) -> str:
    """The first frame, shown before the video plays and in print."""
    picture = io.BytesIO()
    Image.fromarray(to_uint8(read_video(file, frames=1))[0].numpy()).save(picture, format="JPEG", quality=80)
    return _uri("image/jpeg", picture.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
