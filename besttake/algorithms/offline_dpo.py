"""Offline Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) on a file of preference pairs.

`besttake generate` and `besttake score` write such a file; pairs of human votes have the same format.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from besttake.algorithms.errors import sampled_errors
from besttake.algorithms.losses import check_dpo, dpo
from besttake.algorithms.real_clips import ClipBatch, check_caption, empty_batch, shown_first_frame, visible_part
from besttake.data.faults import read_each
from besttake.data.pairs import PreferencePair, read_pairs
from besttake.data.video import check_length, probe, read_video
from besttake.models.policy import Policy
from besttake.runtime.configuration import require
from besttake.runtime.distributed import check_equal_items
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import Metrics, Run, TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrainConfig):
    """Offline Diffusion-DPO."""

    data: str = "pairs.jsonl"
    """Preference pairs: a .jsonl file, or hf:USER/NAME. Each line has a prompt, a winner and its losers."""
    skip_bad: bool = False
    """Skip unusable pairs, with a warning: too long a prompt, or unreadable clips."""
    pairs_per_step: int = 4
    """Preference pairs trained on in a step."""
    beta: float = 500.0
    """DPO's beta; larger = closer to the reference."""
    dpop_weight: float = 0.0
    """DPO-Positive: penalty on the winner's own error; 0 = plain DPO, as in the paper."""
    margin: float = 0.0
    """Smallest score difference in a pair; pairs below it are left out."""
    timesteps_per_pair: int = 1
    """Noise/timestep samples per pair."""
    refresh_every: int = 0
    """Updates between refreshes of the reference; 0 = fixed, as in the paper. Each copies the policy."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Size of the clips."""

    def __post_init__(self):
        super().__post_init__()
        require(self.pairs_per_step >= 1, "pairs_per_step", self.pairs_per_step, "1 or more")
        check_dpo(self.beta, self.dpop_weight, self.timesteps_per_pair)


def train(config: Config) -> Run:
    listed = usable(read_pairs(config.data, config.skip_bad), config)
    with Run(config, listed) as run:
        policy, pairs = run.policy, encode_pairs(run, run.data, config)
        for number, batch in run.steps(range(len(pairs)), config.pairs_per_step):
            loss, metrics = step(policy, None, pairs.batch(batch), config, key=(config.seed, number))
            if run.update(loss, metrics) and run.every(config.refresh_every):
                policy.reference.refresh()
    return run


def step(
    policy: Policy, reward: None, batch: ClipBatch, config: Config, key: tuple[int, int]
) -> tuple[Tensor, Metrics]:
    """The Diffusion-DPO loss of a batch of pairs, and its metrics (equation 14).

    Args:
        key: seed and step, which determine all random numbers.
    """
    generator, repeats = keyed_generator(*key), config.timesteps_per_pair
    condition = config.rollout.condition(policy.model, batch.captions, generator)
    errors = sampled_errors(policy, batch.clips, condition, generator, timesteps_per_pair=repeats)
    loss, metrics = dpo(errors, config.beta, config.dpop_weight)
    return loss.mean(), metrics


def plan_batch(policy: Policy, config: Config, prompts: Iterator[str]) -> ClipBatch:
    """A batch for `step`, for `besttake plan`."""
    return empty_batch(policy.model, config.rollout, prompts, config.pairs_per_step, clips=2)


def usable(pairs: list[PreferencePair], config: Config) -> list[PreferencePair]:
    """The pairs above the margin; all must have the same number of losers."""
    kept = [pair for pair in pairs if pair.margin >= config.margin]
    if not kept:
        raise ValueError(
            f"none of the {len(pairs)} pairs in {config.data} has a margin of {config.margin} or more; lower margin"
        )
    if len(kept) < len(pairs):
        log.info(
            "%d of %d pairs are left out, since their margin is below %g",
            len(pairs) - len(kept),
            len(pairs),
            config.margin,
        )
    if len({len(pair.losers) for pair in kept}) > 1:
        raise ValueError(f"the pairs in {config.data} have different numbers of losers; give each the same number")
    return kept


def encode_pairs(run: Run, pairs: Sequence[PreferencePair], config: Config) -> ClipBatch:
    """Prompts of the usable pairs, and latents of their clips, the winner first.

    Raises:
        ValueError: naming, unless `config.skip_bad`, every pair whose prompt is too long for the model, or with a clip
            that is too short or unreadable; or no pair is left.
    """
    model = run.model
    frames, height, width = config.rollout.size(model)
    read = partial(read_each, what=f"pairs of {config.data}", skip_bad=config.skip_bad)

    def check(pair: PreferencePair) -> PreferencePair:
        check_caption(model, pair.prompt, pair.winner)
        for file in (pair.winner, *pair.losers):
            check_length(file, probe(file).duration, model.fps, frames)
        return pair

    def encode(pair: PreferencePair) -> tuple[PreferencePair, Tensor]:
        files = (pair.winner, *pair.losers)
        videos = [read_video(f, fps=model.fps, frames=frames, size=(height, width)) for f in files]
        return pair, run.encode(torch.stack(videos))

    pairs = read(pairs, check)
    model.prompts.prepare([shown_first_frame(model, pair.prompt, pair.winner) for pair in pairs])
    with model.using("vae"):
        kept, latents = zip(*read(pairs, encode), strict=True)
    listed = (", ".join([repr(p.prompt), *map(visible_part, [p.winner, *p.losers])]) for p in kept)
    check_equal_items("the pairs", listed)
    return ClipBatch([shown_first_frame(model, pair.prompt, pair.winner) for pair in kept], torch.stack(latents))
