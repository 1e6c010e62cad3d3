"""How large a difference of scores must be before it is more than the critic's own noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from besttake.runtime.configuration import require
from besttake.types import FPS, Video

DRAWS = 20_000
"""Groups of equally good takes that are imagined; the margin's own error is then about 1 %."""


@dataclass(frozen=True)
class Calibration:
    """What the scores of some takes, each scored again and again, tell of a critic.

    Attributes:
        margin: best and worst of a group of equally good takes differ by more only as often as the level says.
        noise: standard deviation of a take's score from one time to the next.
        spread: standard deviation of the takes' mean scores, the noise that is left in them taken off.
        ties: share of pairs of takes that score alike to the last digit, the first time.
        flips: share of pairs of takes, and of pairs of times, whose order is not the same both times.
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
    """Scores of the same takes, with other grain on them each time: what nobody sees should change no order.

    Args:
        grain: standard deviation in grey levels of 255; 0 for a critic that answers at random, as a judge may.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(times):
        noise = torch.randn(videos.shape, generator=generator).to(videos) * (2 * grain / 255)
        scores.append(critic((videos + noise).clamp(-1, 1), prompts, fps).detach().float().cpu())
    return torch.stack(scores)


def calibrate(scores: Float[Tensor, "times b"], takes: int = 2, level: float = 0.05, seed: int = 0) -> Calibration:
    """The margin below which an order of takes is chance.

    The differences of each take's scores from their mean are the critic's noise; groups of `takes` draws of it are
    takes that are equally good, and the margin is what their best and worst differ by no more than in 1 - `level`
    of the groups. The more takes there are to choose from, the larger it is: the best of eight is often a lucky one.

    Args:
        scores: of the same takes, each time they were scored; twice at least.
        takes: of each prompt, from which the best and the worst will be paired.
        level: how often chance may pass the margin.

    Raises:
        ValueError: there are too few scores, or the level is none.
    """
    times, b = scores.shape
    require(times >= 2, "times", times, "2 or more")
    require(b >= 2, "videos", b, "2 or more")
    require(takes >= 2, "takes", takes, "2 or more of each prompt")
    require(0 < level < 1, "level", level, "a share between 0 and 1")
    scores = scores.double()
    mean = scores.mean(0)
    residuals = (scores - mean) * (times / (times - 1)) ** 0.5  # undoes what their own mean took off
    generator = torch.Generator().manual_seed(seed)
    drawn = residuals.flatten()[torch.randint(residuals.numel(), (DRAWS, takes), generator=generator)]
    margin = (drawn.amax(1) - drawn.amin(1)).quantile(1 - level).item()
    noise = residuals.square().mean().sqrt().item()
    spread = (mean.var() - noise**2 / times).clamp(min=0).sqrt().item()
    order = (scores[:, :, None] - scores[:, None, :]).sign()[:, *torch.triu_indices(b, b, 1)]
    flips = torch.stack([order[i] != order[j] for i in range(times) for j in range(i)]).double().mean().item()
    return Calibration(margin, noise, spread, (order[0] == 0).double().mean().item(), flips)
