"""Real footage: a folder of captioned clips, checked before anything is trained. `layouts.py` lists how it may lie."""

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
from besttake.data.layouts import Entry, find_entries
from besttake.data.video import probe, read_video
from besttake.types import Video


@dataclass(frozen=True)
class RealClip:
    """A video file, what it shows, and how many seconds it lasts."""

    path: Path
    caption: str
    seconds: float = field(default=math.inf, compare=False)


def find_clips(source: str | Path, *, skip_bad: bool = False) -> list[RealClip]:
    """The captioned clips of a folder, a table file or a dataset ("hf:...", see `hub`).

    Every video is read through once, undecoded.

    Args:
        skip_bad: leave out clips without a caption or a readable video, with a warning, instead of failing.

    Raises:
        ValueError: the folder is missing, empty, in no known layout or in several at once; captions and videos differ
            in number; no clip is left; or, unless `skip_bad`, any caption is empty, any video missing, unreadable,
            truncated, without frames, HDR or a picture: all of them named in one message.
    """
    return read_each(find_entries(local_copy(source, "clips")), _clip, f"clips of {source}", skip_bad=skip_bad)


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

    def load(clip: RealClip) -> tuple[RealClip, Tensor]:
        key = ("clip", content_hash(clip.path), fps, frames, size, encoder) if cache else ()
        made = cache.read(*key) if cache else None
        if made is None:
            made = {"clip": encode(read_video(clip.path, fps=fps, frames=frames, size=size)[None])}
            if cache:
                cache.write(made, *key)
        return clip, made["clip"]

    advice = "Remove them, or ask for fewer frames"
    kept, encoded = zip(*read_each(clips, load, "clips", skip_bad=skip_bad, advice=advice), strict=True)
    return list(kept), torch.cat(encoded)


def _clip(entry: Entry) -> RealClip:
    if entry.fault:
        raise ValueError(entry.fault)
    if not entry.path.is_file():
        raise ValueError(f"{entry.path} is not a file{_near(entry.path)}")
    if not entry.caption:
        raise ValueError(f"{entry.path} has no caption ({entry.place})")
    return RealClip(entry.path, entry.caption, probe(entry.path).duration)


def _near(path: Path) -> str:
    """The file of almost that name, where there is one: in other case, or of another kind."""
    near = [name for name in _names(path.parent) if Path(name).stem.lower() == path.stem.lower()]
    return f"; there is {path.with_name(near[0])}" if near else ""


@functools.lru_cache(maxsize=4)
def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
