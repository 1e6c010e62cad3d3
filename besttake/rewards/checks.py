"""What every critic must give before its word is used: finite numbers of the right shape, or an error says so."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from besttake.rewards.offloading import on_device
from besttake.rewards.partial import PartialScore, scored_mask
from besttake.runtime.distributed import all_gather_rows, raise_on_all, shard_rows
from besttake.types import FPS, Reward, Score, Video


def score_checked(
    reward: Reward, videos: Video, prompts: list[str], fps: float = FPS, abstentions: bool = False
) -> Score:
    """Ask a critic about videos of `fps` frames a second, and pass on its score only if it is one.

    Args:
        abstentions: whether the caller can do with a `PartialScore`, and reads what is `given` of it.

    Raises:
        ValueError: the scores are not a finite float32 (b, d) tensor with the critic's dimensions; the message names
            the critic and, for a number that is not finite, the prompt and the dimension. Or a score is missing.
    """
    if len(videos) != len(prompts):
        raise ValueError(f"critic {reward.name}: {len(videos)} videos but {len(prompts)} prompts; give one for each")
    score = reward(videos, prompts, fps)
    if not isinstance(score, Score):
        raise ValueError(f"critic {reward.name} returned {type(score).__name__}, expected a Score")
    if tuple(score.dimensions) != tuple(reward.dimensions):
        raise ValueError(
            f"critic {reward.name} scored {score.dimensions}, but says its dimensions are {reward.dimensions}"
        )
    values, expected = score.values, (len(prompts), len(reward.dimensions))
    if tuple(values.shape) != expected:
        raise ValueError(
            f"critic {reward.name} returned scores of shape {tuple(values.shape)}, expected {expected}: "
            f"a row for each video, a column for each of {', '.join(reward.dimensions)}"
        )
    if values.dtype != torch.float32:
        raise ValueError(f"critic {reward.name} returned {values.dtype} scores, expected torch.float32")
    for row, column in (~values.detach().isfinite()).nonzero().tolist():
        raise ValueError(
            f"critic {reward.name} returned {float(values[row, column])} for {reward.dimensions[column]!r} "
            f"of the video of {prompts[row]!r}; a score must be finite"
        )
    if isinstance(score, PartialScore):
        _check_given(reward.name, score, prompts, abstentions)
    return score


def score_shard(reward: Reward, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
    """The score of all videos, `checked`, where each of several processes asks the critic about those it has.

    Args:
        videos: of this process's `share` of the prompts.

    Raises:
        ValueError: as `checked` does; the other processes stop as well. Abstentions are no error.
    """
    with raise_on_all(), on_device(reward):
        own = score_checked(reward, videos, [prompts[row] for row in shard_rows(len(prompts))], fps, abstentions=True)
    values, there = all_gather_rows(own.values, len(prompts)), all_gather_rows(scored_mask(own), len(prompts))
    return Score(values, own.dimensions) if there.all() else PartialScore(values, own.dimensions, there)


def _check_given(name: str, score: PartialScore, prompts: list[str], abstentions: bool) -> None:
    if tuple(score.scored.shape) != (len(prompts),) or score.scored.dtype != torch.bool:
        raise ValueError(
            f"critic {name} says which videos it scored by a {score.scored.dtype} tensor of shape "
            f"{tuple(score.scored.shape)}, expected torch.bool and ({len(prompts)},)"
        )
    silent = [prompt for prompt, there in zip(prompts, score.scored.tolist(), strict=True) if not there]
    if silent and not abstentions:
        raise ValueError(
            f"critic {name} abstained on {len(silent)} of {len(prompts)} videos, first that of {silent[0]!r}, and here "
            "every video needs a score; only pairs can do without (of a judge, set `unusable: error` to see its answer)"
        )


def parse_weights(reward: Reward, weights: str | Mapping[str, float]) -> dict[str, float]:
    """How much each dimension of a critic counts.

    Args:
        weights: the name of the only dimension that counts, or dimension -> weight; empty = all of them, equally.

    Raises:
        ValueError: the critic has no such dimension, or a weight is not a finite number.
    """
    chosen = {weights: 1.0} if isinstance(weights, str) and weights else dict(weights or {})
    chosen = chosen or {dimension: 1 / len(reward.dimensions) for dimension in reward.dimensions}
    for dimension, weight in chosen.items():
        if dimension not in reward.dimensions:
            known = ", ".join(reward.dimensions)
            raise ValueError(f"critic {reward.name} has no dimension {dimension!r}; it has: {known}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"the weight of {dimension!r} is {weight!r}, expected a finite number")
    if not any(chosen.values()):
        raise ValueError(f"all weights are 0 ({chosen}): every video would score the same")
    return {dimension: float(weight) for dimension, weight in chosen.items()}
