"""Critic calibration: how large a score difference must be to exceed the critic's own noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from besttake.runtime.configuration import require
from besttake.types import FPS, Video

N_RESAMPLES = 20_000
"""Simulated groups of equally good candidates; the sampling error of the margin is then about 1 %."""


@dataclass(frozen=True)
class Calibration:
    """Noise statistics of a critic, estimated from repeated scores of the same videos.

    Attributes:
        margin: threshold that best minus worst of a group of equally good candidates exceeds with probability `level`.
        noise: standard deviation of one video's score over the repeats.
        spread: standard deviation of the videos' mean scores, corrected for the remaining noise.
        ties: fraction of video pairs with exactly equal scores in the first repeat.
        flips: fraction of (video pair, repeat pair) combinations in which the two repeats order the videos differently.
    """

    margin: float
    noise: float
    spread: float
    ties: float
    flips: float


def repeat_scores(
    critic: Callable[[Video, list[str], float], Float[Tensor, "b"]],
    videos: Video,
    prompts: list[str],
    fps: float = FPS,
    times: int = 8,
    grain: float = 1.0,
    seed: int = 0,
) -> Float[Tensor, "times b"]:
    """Score the same videos several times, each time with new imperceptible noise, which should not change the order.

    Args:
        times: number of repeats.
        grain: standard deviation of the noise in grey levels (of 255); 0 for a critic that is random itself, such as a
            sampling judge.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(times):
        noise = torch.randn(videos.shape, generator=generator).to(videos) * (2 * grain / 255)
        scores.append(critic((videos + noise).clamp(-1, 1), prompts, fps).detach().float().cpu())
    return torch.stack(scores)


def calibrate(scores: Float[Tensor, "times b"], candidates: int = 2, level: float = 0.05, seed: int = 0) -> Calibration:
    """Estimate the margin below which the order of candidates is chance.

    Each video's deviations from its mean score are the critic's noise. A group of `candidates` samples of this noise
    simulates equally good candidates; the margin is the 1 - `level` quantile of best minus worst over such groups. It
    grows with the number of candidates: the best of eight is often just lucky.

    Args:
        scores: repeated scores of the same videos; at least two repeats.
        candidates: number of candidates of each prompt among which the best and worst will be paired.
        level: probability with which chance may exceed the margin.

    Raises:
        ValueError: fewer than two repeats, videos or candidates, or `level` is not between 0 and 1.
    """
    times, b = scores.shape
    require(times >= 2, "times", times, "2 or more")
    require(b >= 2, "videos", b, "2 or more")
    require(candidates >= 2, "candidates", candidates, "2 or more of each prompt")
    require(0 < level < 1, "level", level, "a fraction between 0 and 1")
    scores = scores.double()
    mean = scores.mean(0)
    residuals = (scores - mean) * (times / (times - 1)) ** 0.5  # corrects for subtracting the sample mean
    generator = torch.Generator().manual_seed(seed)
    groups = residuals.flatten()[torch.randint(residuals.numel(), (N_RESAMPLES, candidates), generator=generator)]
    margin = (groups.amax(1) - groups.amin(1)).quantile(1 - level).item()
    noise = residuals.square().mean().sqrt().item()
    spread = (mean.var() - noise**2 / times).clamp(min=0).sqrt().item()
    order = (scores[:, :, None] - scores[:, None, :]).sign()[:, *torch.triu_indices(b, b, 1)]
    flips = torch.stack([order[i] != order[j] for i in range(times) for j in range(i)]).double().mean().item()
    return Calibration(margin, noise, spread, (order[0] == 0).double().mean().item(), flips)
