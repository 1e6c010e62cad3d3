"""Real footage: a folder of captioned clips, checked before anything is trained. `layouts.py` lists how it may lie."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from besttake.data.cache import TensorCache
from besttake.data.files import content
from besttake.data.layouts import Entry, find_entries
from besttake.data.video import probe, read_video
from besttake.types import Video

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealClip:
    """A video file and what it shows."""

    path: Path
    caption: str


def find_clips(source: str | Path, *, skip_bad: bool = False) -> list[RealClip]:
    """The captioned clips of a folder, or of a table file; every video is read through once, undecoded.

    Args:
        skip_bad: leave out clips without a caption or a readable video, with a warning for each, instead of failing.

    Raises:
        ValueError: the folder is missing, empty, in no known layout or in several at once; captions and videos differ
            in number; no clip is left; or, unless `skip_bad`, any caption is empty, any video missing, unreadable,
            truncated or without frames: all of them named in one message.
    """
    clips, faults = [], []
    entries = find_entries(source)
    for entry in entries:
        fault = _fault(entry)
        if fault:
            faults.append(fault)
        else:
            clips.append(RealClip(entry.path, entry.caption))
    if faults and not (skip_bad and clips):
        advice = "No clip is left" if skip_bad else "Mend or remove them, or set skip_bad to go on without them"
        raise ValueError(_listing(f"{len(faults)} of {len(entries)} clips of {source} cannot be used", faults, advice))
    for fault in faults:
        log.warning("skipped: %s", fault)
    return clips


def load_real(
    clips: Sequence[RealClip],
    encode: Callable[[Video], Tensor],
    *,
    fps: float,
    frames: int,
    size: tuple[int, int],
    skip_bad: bool = False,
    cache: TensorCache | None = None,
    encoder: str = "",
) -> tuple[list[RealClip], Tensor]:
    """The first `frames` frames of every clip at `fps` and (height, width) `size`, encoded one by one.

    Args:
        encode: from videos `1 f c h w` to what is kept of them.
        skip_bad: leave out clips that are too short or cannot be read to there, with a warning, instead of failing.
        cache: where to look for what was kept of a clip before, and to keep it.
        encoder: what tells `encode` from another in the cache.

    Returns:
        The clips that are left, and what was kept of them, in the same order.

    Raises:
        ValueError: naming every clip that is too short or cannot be read; no clip is left.
    """
    kept, encoded, faults = [], [], []
    for clip in clips:
        try:
            key = ("clip", content(clip.path), fps, frames, size, encoder) if cache else ()
            made = cache.read(*key) if cache else None
            if made is None:
                made = {"clip": encode(read_video(clip.path, fps=fps, frames=frames, size=size)[None])}
                if cache:
                    cache.write(made, *key)
            encoded.append(made["clip"])
            kept.append(clip)
        except ValueError as error:
            faults.append(str(error))
    if faults and not (skip_bad and kept):
        advice = "Remove them, ask for fewer frames, or set skip_bad to go on without them"
        raise ValueError(_listing(f"{len(faults)} of {len(clips)} clips cannot be used", faults, advice))
    for fault in faults:
        log.warning("skipped: %s", fault)
    return kept, torch.cat(encoded)


def _listing(title: str, faults: list[str], advice: str) -> str:
    return "\n  ".join([f"{title}:", *faults]) + f"\n{advice}."


def _fault(entry: Entry) -> str | None:
    if not entry.caption:
        return f"{entry.path} has no caption ({entry.place})"
    try:
        probe(entry.path)
    except ValueError as error:
        return str(error)
    return None
