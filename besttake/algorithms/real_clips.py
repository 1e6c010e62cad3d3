"""The real clips of a run, as both algorithms that learn from them take them: sized and timed for its model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from besttake.data.faults import read_each
from besttake.data.files import content
from besttake.data.real import RealClip, load_real
from besttake.data.video import check_length
from besttake.models import VideoModel
from besttake.runtime.distributed import agree_on_each, dealt, together
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import Run
from besttake.types import Latent, Prompt


def encode_clips(
    run: Run, clips: Sequence[RealClip], size: RolloutConfig, skip_bad: bool = False
) -> tuple[list[str], Latent]:
    """Captions and latents of the clips, in the frames, height and width that the model's takes have.

    Raises:
        ValueError: naming, unless `skip_bad`, every clip whose caption is too long for the model, or that is too short
            or cannot be read; or none is left; or the processes have other clips or captions.
    """
    agree_on_each("the clips", (f"{clip.caption!r}, {seen(clip.path)}" for clip in clips))
    frames, height, width = size.size(run.model)

    def check(clip: RealClip) -> RealClip:
        check_caption(run.model, clip.caption, clip.path)
        check_length(clip.path, clip.seconds, run.model.fps, frames)
        return clip

    advice = "Shorten or remove them, or ask for fewer frames"
    clips = read_each(clips, check, "clips", skip_bad=skip_bad, advice=advice)
    run.model.prepare([shown_first_frame(run.model, clip.caption, clip.path) for clip in clips])
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


def check_caption(model: VideoModel, caption: str, clip: Path) -> None:
    """ValueError naming a clip whose caption the model cannot be given."""
    try:
        model.check_prompt(shown_first_frame(model, caption, clip))
    except ValueError as error:
        raise ValueError(f"{clip}: {error}") from error


def shown_first_frame(model: VideoModel, caption: str, clip: Path) -> str:
    """The prompt of a clip: an image-to-video model is shown how it begins."""
    return Prompt(caption, first_frame=clip) if model.needs_first_frame else caption
