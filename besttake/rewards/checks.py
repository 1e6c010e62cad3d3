"""Validation of critics' scores: finite float32 numbers of the right shape, or an error that names the fault."""

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
    """Score videos of `fps` frames a second and validate the result.

    Args:
        abstentions: whether the caller can handle a `PartialScore`, that is, checks its `scored` mask.

    Raises:
        ValueError: the scores are not a finite float32 (b, d) tensor with the critic's dimensions; the message names
            the critic and, for a number that is not finite, the prompt and the dimension. Or the critic abstained and
            `abstentions` is false.
    """
    if len(videos) != len(prompts):
        raise ValueError(f"critic {reward.name}: {len(videos)} videos but {len(prompts)} prompts; give one for each")
    score = reward(videos, prompts, fps)
    if not isinstance(score, Score):
        raise ValueError(f"critic {reward.name} returned {type(score).__name__}, expected a Score")
    if tuple(score.dimensions) != tuple(reward.dimensions):
        raise ValueError(f"critic {reward.name} returned dimensions {score.dimensions}, expected {reward.dimensions}")
    values, expected = score.values, (len(prompts), len(reward.dimensions))
    if tuple(values.shape) != expected:
        raise ValueError(
            f"critic {reward.name} returned scores of shape {tuple(values.shape)}, expected {expected}: "
            f"one row per video, one column per dimension ({', '.join(reward.dimensions)})"
        )
    if values.dtype != torch.float32:
        raise ValueError(f"critic {reward.name} returned {values.dtype} scores, expected torch.float32")
    for row, column in (~values.detach().isfinite()).nonzero().tolist():
        raise ValueError(
            f"critic {reward.name} returned {float(values[row, column])} for {reward.dimensions[column]!r} "
            f"of the video of {prompts[row]!r}; a score must be finite"
        )
    if isinstance(score, PartialScore):
        _check_mask(reward.name, score, prompts, abstentions)
    return score


def score_shard(reward: Reward, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
    """Validated scores of all videos, where each process scores its own shard.

    Args:
        videos: videos of this process's rows (`shard_rows`) of the prompts.
        prompts: all prompts, on every process.

    Raises:
        ValueError: like `score_checked`; all other processes stop as well. Abstentions are allowed.
    """
    with raise_on_all(), on_device(reward):
        own = score_checked(reward, videos, [prompts[row] for row in shard_rows(len(prompts))], fps, abstentions=True)
    values, scored = all_gather_rows(own.values, len(prompts)), all_gather_rows(scored_mask(own), len(prompts))
    return Score(values, own.dimensions) if scored.all() else PartialScore(values, own.dimensions, scored)


def _check_mask(name: str, score: PartialScore, prompts: list[str], abstentions: bool) -> None:
    if tuple(score.scored.shape) != (len(prompts),) or score.scored.dtype != torch.bool:
        raise ValueError(
            f"critic {name} returned a `scored` mask of {score.scored.dtype} and shape {tuple(score.scored.shape)}, "
            f"expected torch.bool and ({len(prompts)},)"
        )
    abstained = [prompt for prompt, scored in zip(prompts, score.scored.tolist(), strict=True) if not scored]
    if abstained and not abstentions:
        raise ValueError(
            f"critic {name} abstained on {len(abstained)} of {len(prompts)} videos, the first for {abstained[0]!r}, "
            "but every video needs a score here (for a judge, set `unusable: error` to see its answer)"
        )


def parse_weights(reward: Reward, weights: str | Mapping[str, float]) -> dict[str, float]:
    """The weight of each dimension of a critic, validated.

    Args:
        weights: name of the only dimension to use, or dimension -> weight; empty = all dimensions equally.

    Raises:
        ValueError: a dimension is unknown, a weight is not a finite number, or all weights are 0.
    """
    parsed = {weights: 1.0} if isinstance(weights, str) and weights else dict(weights or {})
    parsed = parsed or {dimension: 1 / len(reward.dimensions) for dimension in reward.dimensions}
    for dimension, weight in parsed.items():
        if dimension not in reward.dimensions:
            known = ", ".join(reward.dimensions)
            raise ValueError(f"critic {reward.name} has no dimension {dimension!r}; its dimensions: {known}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"the weight of {dimension!r} is {weight!r}, expected a finite number")
    if not any(parsed.values()):
        raise ValueError(
            f"all weights are 0 ({parsed}): every video would get the same score; give at least one other weight"
        )
    return {dimension: float(weight) for dimension, weight in parsed.items()}
