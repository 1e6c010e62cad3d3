"""Some frames of a clip, each decoded from the latents around it: a preview for critics that look at few frames.

A causal video autoencoder makes a frame of its own latent and of those before it. The nearest matter most, so that
short windows of latents stand in for the whole clip. The first latent of a window is taken for a clip's first, which
is one frame and not several; a window therefore begins before the latent that is wanted.
"""

from __future__ import annotations

import torch

from besttake.models.base import VideoModel
from besttake.types import Latent, Video

BEFORE = 2
"""Latents that a window has before the one that is wanted."""


def decode_some(model: VideoModel, latents: Latent, frames: int, some: int) -> Video:
    """So many frames of clips, evenly from first to last, rounded down.

    Where the windows hold no fewer latents than the clip, all of it is decoded, and the frames are exact.

    Args:
        frames: of the whole clip, whose first latent is one frame and every other as many as the rest.

    Raises:
        ValueError: the model's latents are not of that kind.
    """
    places = torch.linspace(0, frames - 1, some, dtype=torch.float64).long().tolist()
    times = latents.shape[2]
    each, rest = divmod(frames - 1, max(1, times - 1))
    if rest or times == 1:
        raise ValueError(
            f"{frames} frames of {model.source} are {times} latents, none of which can be decoded by itself; "
            "leave rollout.decoded out"
        )
    ends = [-(-place // each) for place in places]  # the latent that each frame is of
    starts = [max(0, end - BEFORE) for end in ends]
    windows = dict(zip(ends, starts, strict=True))
    if sum(end - start + 1 for end, start in windows.items()) >= times:
        return model.decode(latents, frames)[:, places]
    shown = {
        end: model.decode(latents[:, :, start : end + 1], 1 + each * (end - start)) for end, start in windows.items()
    }
    chosen = zip(places, ends, starts, strict=True)
    return torch.stack([shown[end][:, place - each * start] for place, end, start in chosen], 1)
