"""Real clips with captions, validated before training. `layouts.py` lists the supported layouts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from besttake.data.cache import TensorCache
from besttake.data.faults import read_each
from besttake.data.files import content_hash
from besttake.data.hub import local_copy
from besttake.data.layouts import ListedClip, list_clips
from besttake.data.video import probe, read_video
from besttake.types import Video


@dataclass(frozen=True)
class RealClip:
    """A video file, its caption, and its duration in seconds."""

    path: Path
    caption: str
    seconds: float = field(default=math.inf, compare=False)


def find_clips(source: str | Path, *, skip_bad: bool = False) -> list[RealClip]:
    """The captioned clips of a folder, a table file or a dataset ("hf:...", see `hub`).

    Every video is read once without decoding.

    Args:
        skip_bad: leave out clips without a caption or a readable video, with a warning, instead of failing.

    Raises:
        ValueError: the folder is missing, empty, in no known layout or in several; captions and videos differ in
            number; no clip is left; or, unless `skip_bad`, lists all clips with an empty caption or a video that is
            missing, unreadable, truncated, without frames, HDR or a picture.
    """
    return read_each(list_clips(local_copy(source, "clips")), _clip, f"clips of {source}", skip_bad=skip_bad)


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
    """Read and encode the first `frames` frames of every clip at `fps` and (height, width) `size`, one by one.

    Args:
        encode: maps videos `1 f c h w` to latents.
        skip_bad: leave out clips that are too short or unreadable, with a warning, instead of failing.
        cache: cache of encoded clips.
        encoder: identifies `encode` in the cache's keys.

    Returns:
        The remaining clips and their encodings, in the same order.

    Raises:
        ValueError: lists every clip that is too short or unreadable; or no clip is left.
    """

    def load(clip: RealClip) -> tuple[RealClip, Tensor]:
        key = ("clip", content_hash(clip.path), fps, frames, size, encoder) if cache else ()
        cached = cache.read(*key) if cache else None
        if cached is None:
            cached = {"clip": encode(read_video(clip.path, fps=fps, frames=frames, size=size)[None])}
            if cache:
                cache.write(cached, *key)
        return clip, cached["clip"]

    advice = "Remove them, or use fewer frames"
    loaded, encoded = zip(*read_each(clips, load, "clips", skip_bad=skip_bad, advice=advice), strict=True)
    return list(loaded), torch.cat(encoded)


def _clip(listed: ListedClip) -> RealClip:
    if listed.fault:
        raise ValueError(listed.fault)
    if not listed.path.is_file():
        raise ValueError(f"{listed.path} is not a file{_similar_file(listed.path)}")
    if not listed.caption:
        raise ValueError(f"{listed.path} has no caption ({listed.place})")
    return RealClip(listed.path, listed.caption, probe(listed.path).duration)


def _similar_file(path: Path) -> str:
    """A hint at a file whose name differs only in case or suffix, if there is one."""
    near = [name for name in _file_names(path.parent) if Path(name).stem.lower() == path.stem.lower()]
    return f"; there is {path.with_name(near[0])}" if near else ""


@functools.lru_cache(maxsize=4)
def _file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
