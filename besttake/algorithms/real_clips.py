"""The real clips of a run, as both algorithms that learn from them take them: sized and timed for its model."""

from __future__ import annotations

from collections.abc import Sequence

from besttake.data.real import RealClip, load_real
from besttake.rollout import RolloutConfig
from besttake.run import Run
from besttake.types import Latent


def encode_clips(
    run: Run, clips: Sequence[RealClip], size: RolloutConfig, skip_bad: bool = False
) -> tuple[list[str], Latent]:
    """Captions and latents of the clips, in the frames, height and width that the model's takes have.

    Raises:
        ValueError: a caption is too long for the model, or a clip is too short or unreadable, unless `skip_bad`.
    """
    run.model.check_prompts([clip.caption for clip in clips])
    frames, height, width = size.size(run.model)
    clips, latents = load_real(
        clips, run.encode, fps=run.model.fps, frames=frames, size=(height, width), skip_bad=skip_bad
    )
    return [clip.caption for clip in clips], latents
