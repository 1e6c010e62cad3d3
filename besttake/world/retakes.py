"""What a base model makes of clean clips: they are noised to some time and denoised again, and lose the more of what
they were the later that time.

Drawn flaws teach a critic what people complain of; these are the model's own, which it will be asked about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from besttake.models import VideoModel
from besttake.rollout import RolloutConfig, denoise
from besttake.types import Video
from besttake.world.captions import Caption, sample_caption
from besttake.world.clips import film_clip

EARLIEST = 0.15
"""Before this time the model repairs all that noise has done."""


@dataclass(frozen=True)
class Retakes:
    """Groups of takes of one clip each: uint8 videos `g n f c h w`, captions, and times (g, n), 0 = only the codec."""

    videos: Tensor
    captions: list[Caption]
    times: Tensor


def make_retakes(model: VideoModel, groups: int, takes: int, seed: int, steps: int = 16) -> Retakes:
    """Groups of `takes` takes of one clean clip: the first only through the codec, the others from their own times."""
    rng = np.random.default_rng(seed)
    captions, videos, times = [], [], []
    for _ in range(groups):
        caption = sample_caption(rng, "train")
        clip = film_clip(caption, rng, frames=model.default_size()[0]).video
        t = [0.0, *(float(rng.uniform(EARLIEST, 1)) for _ in range(takes - 1))]
        takes_of_it = torch.cat([retake(model, clip[None], [str(caption)], begin, rng, steps) for begin in t])
        videos.append(((takes_of_it + 1) * 127.5).round().to(torch.uint8))
        captions.append(caption)
        times.append(t)
    return Retakes(torch.stack(videos), captions, torch.tensor(times))


@torch.no_grad()
def retake(model: VideoModel, videos: Video, prompts: list[str], t: float, rng: np.random.Generator, steps: int):
    """Videos noised to about time `t` and denoised from there, in [-1, 1]; for t = 0 only encoded and decoded."""
    latents = model.encode(videos)
    times = [float(model.schedule.time(timestep)) for timestep in model.sampler(steps).timesteps]
    begin = max((time for time in times if time <= t), default=0.0)
    if begin:
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        x_t = model.schedule.add_noise(latents, noise, torch.full((len(latents),), begin))
        latents = denoise(model, x_t, model.encode_prompts(prompts), RolloutConfig(steps=steps), None, begin)
    return model.decode(latents).float().clamp(-1, 1)


def lost(times: Tensor) -> Tensor:
    """How much a take has lost of its clip, from 0 to 1, by the time it was denoised from."""
    return ((times - EARLIEST) / (1 - EARLIEST)).clamp(min=0)
