"""Real clips for training: latents in the size and frame rate of the model's own videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from besttake.algorithms.losses import Clips
from besttake.data.faults import read_each
from besttake.data.files import content_hash
from besttake.data.real import RealClip, load_real
from besttake.data.video import check_length
from besttake.models import VideoModel
from besttake.runtime.distributed import check_equal_items, raise_on_all, shard_items
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import Run
from besttake.types import Condition, Prompt

DROPOUT = 4_294_967_291
"""Key of the random numbers of caption dropout."""


@dataclass(frozen=True)
class ClipBatch:
    """Captions, and latents (b, k, c, f, h, w) of `k` clips of each: the winner first, then its losers."""

    captions: list[str]
    clips: Clips

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, rows: Sequence[int]) -> ClipBatch:
        """A subset of the rows."""
        return ClipBatch([self.captions[row] for row in rows], self.clips[list(rows)])

    def against(self, losers: Float[Tensor, "b n c f h w"]) -> ClipBatch:
        """Each row's clip as the winner over its losers."""
        return ClipBatch(self.captions, torch.cat([self.clips, losers.to(self.clips)], 1))


def empty_batch(model: VideoModel, size: RolloutConfig, captions: Iterator[str], rows: int, clips: int) -> ClipBatch:
    """A batch with the shapes of training and uninitialised values, for `besttake plan`."""
    shape = rows, clips, *model.latent_shape(*size.size(model))
    return ClipBatch([next(captions) for _ in range(rows)], torch.empty(shape, device=model.device))


def encode_clips(run: Run, clips: Sequence[RealClip], size: RolloutConfig, skip_bad: bool = False) -> ClipBatch:
    """Captions and latents of the clips, in the frames, height and width of `size`.

    Raises:
        ValueError: naming, unless `skip_bad`, every clip that is too short or unreadable, or has too long a caption for
            the model; or no clip is left; or the processes have different clips or captions.
    """
    check_equal_items("the clips", (f"{clip.caption!r}, {visible_part(clip.path)}" for clip in clips))
    frames, height, width = size.size(run.model)

    def check(clip: RealClip) -> RealClip:
        check_caption(run.model, clip.caption, clip.path)
        check_length(clip.path, clip.seconds, run.model.fps, frames)
        return clip

    advice = "Shorten or remove them, or lower rollout.frames"
    clips = read_each(clips, check, "clips", skip_bad=skip_bad, advice=advice)
    run.model.prompts.prepare([shown_first_frame(run.model, clip.caption, clip.path) for clip in clips])
    load = partial(
        load_real,
        encode=run.encode,
        fps=run.model.fps,
        frames=frames,
        size=(height, width),
        skip_bad=skip_bad,
        cache=run.model.prompts.cache,
        encoder=run.model.identity("vae") if run.model.prompts.cache else "",
    )
    with run.model.using("vae"):
        if run.model.prompts.cache and (mine := shard_items(clips)):
            with raise_on_all(), suppress(ValueError):  # unusable clips are reported on all processes below
                load(mine)
        with raise_on_all():
            clips, latents = load(clips)
    check_equal_items("the usable clips", (f"{clip.caption!r}, {clip.path.name}" for clip in clips))
    return ClipBatch([shown_first_frame(run.model, clip.caption, clip.path) for clip in clips], latents[:, None])


def drop_captions(model: VideoModel, condition: Condition, share: float, key: tuple[int, int]) -> Condition:
    """Caption dropout: replace the captions of a fraction of rows by the empty prompt, for classifier-free guidance.

    Args:
        key: seed and step, which determine the choice; other random numbers are not affected.
    """
    if not share:
        return condition
    empty = model.encode_negative(1, "")
    rows = len(next(iter(condition.values())))
    dropped = torch.rand(rows, generator=keyed_generator(*key, DROPOUT)) < share

    def mixed(name: str, value: Tensor) -> Tensor:
        choice = dropped.to(value.device).view(-1, *[1] * (value.ndim - 1))
        return torch.where(choice, empty[name].to(value).expand_as(value), value)

    return condition | {name: mixed(name, condition[name]) for name in empty}


def visible_part(file: Path) -> str:
    """A description of a file to compare between processes: its name, size, and a hash of parts of it."""
    return f"{file.name} of {file.stat().st_size} bytes ({content_hash(file, full_bytes=1 << 20)[:8]})"


def check_caption(model: VideoModel, caption: str, clip: Path) -> None:
    """ValueError, naming the clip, if the model cannot encode its caption."""
    try:
        model.prompts.check(shown_first_frame(model, caption, clip))
    except ValueError as error:
        raise ValueError(f"{clip}: {error}") from error


def shown_first_frame(model: VideoModel, caption: str, clip: Path) -> str:
    """The prompt of a clip, with its first frame for image-to-video models."""
    return Prompt(caption, first_frame=clip) if model.needs_first_frame else caption
