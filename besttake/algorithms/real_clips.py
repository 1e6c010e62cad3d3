"""The real clips of a run, as both algorithms that learn from them take them: sized and timed for its model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from besttake.data.files import content
from besttake.data.real import RealClip, load_real
from besttake.distributed import agree_on_each, dealt, together
from besttake.models import VideoModel
from besttake.rollout import RolloutConfig
from besttake.run import Run
from besttake.types import Latent, Prompt


def encode_clips(
    run: Run, clips: Sequence[RealClip], size: RolloutConfig, skip_bad: bool = False
) -> tuple[list[str], Latent]:
    """Captions and latents of the clips, in the frames, height and width that the model's takes have.

    Raises:
        ValueError: a caption is too long for the model, or a clip is too short or unreadable, unless `skip_bad`; or the
            processes have other clips or captions.
    """
    agree_on_each("the clips", (f"{clip.caption!r}, {seen(clip.path)}" for clip in clips))
    run.model.prepare([shown_first_frame(run.model, clip.caption, clip.path) for clip in clips])
    frames, height, width = size.size(run.model)
    load = partial(
        load_real,
        encode=run.encode,
        fps=run.model.fps,
        frames=frames,
        size=(height, width),
        skip_bad=skip_bad,
        cache=run.model.cache,
        encoder=run.model.identity("vae") if run.model.cache else "",
    )
    with run.model.using("vae"):
        if run.model.cache and (mine := dealt(clips)):
            with together(), suppress(ValueError):  # of clips that are no good; all are told of them below
                load(mine)
        with together():
            clips, latents = load(clips)
    agree_on_each("the clips that can be used", (f"{clip.caption!r}, {clip.path.name}" for clip in clips))
    return [shown_first_frame(run.model, clip.caption, clip.path) for clip in clips], latents


def seen(file: Path) -> str:
    """A file as two processes see it: its name, its size, and a hash of pieces of it."""
    return f"{file.name} of {file.stat().st_size} bytes ({content(file, whole=1 << 20)[:8]})"


def shown_first_frame(model: VideoModel, caption: str, clip: Path) -> str:
    """The prompt of a clip: an image-to-video model is shown how it begins."""
    return Prompt(caption, first_frame=clip) if model.needs_first_frame else caption
