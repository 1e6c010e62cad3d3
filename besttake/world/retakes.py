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


def make_retakes(model: VideoModel, groups: int, takes: int, seed: int, steps: int = 12) -> Retakes:
    """Groups of `takes` takes of one clean clip: the first only through the codec, the others from their own times."""
    rng = np.random.default_rng(seed)
    captions = [sample_caption(rng, "train") for _ in range(groups)]
    clips = torch.stack([film_clip(caption, rng, frames=model.default_size()[0]).video for caption in captions])
    grid = [float(model.schedule.time(timestep)) for timestep in model.sampler(steps).timesteps]
    late = [time for time in grid if time > EARLIEST]
    times = torch.tensor([[0.0, *rng.choice(late, takes - 1)] for _ in range(groups)], dtype=torch.float64)
    videos = torch.empty(groups, takes, *clips.shape[1:], dtype=torch.uint8)
    for begin in times.unique().tolist():
        for rows in (times == begin).nonzero().split(32):
            prompts = [str(captions[row]) for row in rows[:, 0].tolist()]
            again = retake(model, clips[rows[:, 0]], prompts, begin, rng, steps)
            videos[rows[:, 0], rows[:, 1]] = ((again + 1) * 127.5).round().to(torch.uint8)
    return Retakes(videos, captions, times.float())


@torch.no_grad()
def retake(model: VideoModel, videos: Video, prompts: list[str], t: float, rng: np.random.Generator, steps: int):
    """Videos noised to `t`, a time of the sampler, and denoised from there; for t = 0 only encoded and decoded."""
    latents = model.encode(videos)
    if t:
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        x_t = model.schedule.add_noise(latents, noise, torch.full((len(latents),), t))
        latents = denoise(model, x_t, model.encode_prompts(prompts), RolloutConfig(steps=steps), None, t)
    return model.decode(latents).float().clamp(-1, 1)


def lost(times: Tensor) -> Tensor:
    """How much a take has lost of its clip, from 0 to 1, by the time it was denoised from."""
    return ((times - EARLIEST) / (1 - EARLIEST)).clamp(min=0)
