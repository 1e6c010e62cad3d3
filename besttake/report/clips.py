"""The evaluation's clips as HTML: before, after and real clip of a prompt side by side, embedded in the page."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from besttake.data.video import read_video, to_uint8
from besttake.report.folder import COLUMNS, RunFolder

MOST_CLIPS = 16
"""Largest number of prompts with clips in a page."""


def clip_cards(run: RunFolder) -> tuple[list[str], list[str]]:
    """A card for each prompt, and remarks on missing clips."""
    numbers = sorted(set().union(*run.clips.values()))
    cards, remarks = [], []
    for index in numbers[:MOST_CLIPS]:
        figures = []
        for column in COLUMNS:
            file = run.clips[column].get(index)
            try:
                figures += [_figure(file, column, index)] if file else []
            except ValueError as error:
                remarks.append(f"A clip cannot be shown: {error}")
        if figures:
            cards.append(_card(_caption(run, index), figures))
    if len(numbers) > MOST_CLIPS:
        remarks.append(f"The first {MOST_CLIPS} of {len(numbers)} prompts are shown; the others are in evaluation/.")
    available = [column for column in COLUMNS if run.clips[column]]
    missing = [column for column in COLUMNS[:2] if column not in available]
    if cards and missing:
        remarks.append(f"There are no clips from {' or '.join(missing)} training in the run folder.")
    return cards, remarks


def _caption(run: RunFolder, index: int) -> str:
    return run.prompts[index] if index < len(run.prompts) else f"clip {index}"


def _card(caption: str, figures: list[str]) -> str:
    return f'<article class="clips"><h3>{escape(caption)}</h3><div>{"".join(figures)}</div></article>'


def _figure(file: Path, column: str, index: int) -> str:
    """
    Raises:
        ValueError: the file cannot be read as a video.
    """
    label = "real clip" if column == "real" else column
    return (
        f'<figure class="{column}"><video muted loop playsinline controls preload="none" '
        f'poster="{_poster(file)}" src="{_uri("video/mp4", file.read_bytes())}" '
        f'aria-label="{label}, clip {index}"></video><figcaption>{label}</figcaption></figure>'
    )


def _poster(file: Path) -> str:
    """The first frame, shown before the video plays and in print."""
    picture = io.BytesIO()
    Image.fromarray(to_uint8(read_video(file, frames=1))[0].numpy()).save(picture, format="JPEG", quality=80)
    return _uri("image/jpeg", picture.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
