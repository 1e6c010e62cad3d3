"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) on a file of preference pairs made before training.

`besttake generate` and `besttake score` write such a file; pairs of people's votes have the same form.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from besttake.algorithms.losses import check_dpo, dpo, drawn_errors
from besttake.algorithms.real_clips import check_caption, seen, shown_first_frame
from besttake.data.faults import read_each
from besttake.data.pairs import PreferencePair, read_pairs
from besttake.data.video import check_length, probe, read_video
from besttake.runtime.distributed import agree_on_each
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import Run, TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrainConfig):
    """Offline Diffusion-DPO."""

    data: str = "pairs.jsonl"
    """File of preference pairs: a prompt, a winner and its losers a line."""
    skip_bad: bool = False
    """Leave out pairs with an over-long prompt or unreadable clips, with a warning, instead of stopping."""
    pairs_per_step: int = 4
    beta: float = 500.0
    guard: float = 0.0
    """How hard a winner's error is kept from rising above the reference's (DPO-Positive); 0 = as in the paper."""
    margin: float = 0.0
    """Pairs whose scores differ by less are left out."""
    draws: int = 1
    """Times and noises that each pair's errors are averaged over."""
    refresh_every: int = 0
    """Updates between hard copies of the policy into the reference; 0 = the reference stays, as in the paper."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Gives the size of the clips."""

    def __post_init__(self):
        super().__post_init__()
        if self.pairs_per_step < 1:
            raise ValueError(f"pairs_per_step is {self.pairs_per_step}; a step needs at least 1")
        check_dpo(self.beta, self.guard, self.draws)


def train(config: Config) -> Run:
    pairs = usable(read_pairs(config.data, config.skip_bad), config)
    with Run(config, pairs) as run:
        policy, model = run.policy, run.model
        pairs, clips = encode_pairs(run, run.data, config)
        agree_on_each("the pairs", (", ".join([repr(p.prompt), *map(seen, [p.winner, *p.losers])]) for p in pairs))
        prompts = [shown_first_frame(model, pair.prompt, pair.winner) for pair in pairs]
        for step, batch in run.steps(range(len(pairs)), config.pairs_per_step):
            generator = run.generator(step)
            condition = config.rollout.condition(model, [prompts[i] for i in batch], generator)
            errors = drawn_errors(policy, clips[batch], condition, generator, draws=config.draws)
            loss, watched = dpo(errors, config.beta, config.guard)
            if run.update(loss.mean(), **watched) and run.every(config.refresh_every):
                policy.reference.refresh()
    return run


def usable(pairs: list[PreferencePair], config: Config) -> list[PreferencePair]:
    """The pairs above the margin; all must have the same number of losers."""
    kept = [pair for pair in pairs if pair.margin >= config.margin]
    if not kept:
        raise ValueError(
            f"none of the {len(pairs)} pairs in {config.data} has a margin of {config.margin} or more; lower margin"
        )
    if len(kept) < len(pairs):
        log.info(
            "%d of %d pairs are left out: their margin is below %g", len(pairs) - len(kept), len(pairs), config.margin
        )
    if len({len(pair.losers) for pair in kept}) > 1:
        raise ValueError(f"the pairs in {config.data} have different numbers of losers; give each the same number")
    return kept


def encode_pairs(
    run: Run, pairs: Sequence[PreferencePair], config: Config
) -> tuple[list[PreferencePair], Float[Tensor, "n k c f h w"]]:
    """The pairs that can be used, and latents of their clips, the winner first.

    Raises:
        ValueError: naming, unless `config.skip_bad`, every pair whose prompt is too long for the model, or of whose
            clips one is too short or cannot be read; or none is left.
    """
    model = run.model
    frames, height, width = config.rollout.size(model)
    told = partial(read_each, what=f"pairs of {config.data}", skip_bad=config.skip_bad)

    def check(pair: PreferencePair) -> PreferencePair:
        check_caption(model, pair.prompt, pair.winner)
        for file in (pair.winner, *pair.losers):
            check_length(file, probe(file).duration, model.fps, frames)
        return pair

    def encode(pair: PreferencePair) -> tuple[PreferencePair, Tensor]:
        files = (pair.winner, *pair.losers)
        videos = [read_video(f, fps=model.fps, frames=frames, size=(height, width)) for f in files]
        return pair, run.encode(torch.stack(videos))

    pairs = told(pairs, check)
    model.prepare([shown_first_frame(model, pair.prompt, pair.winner) for pair in pairs])
    with model.using("vae"):
        kept, latents = zip(*told(pairs, encode), strict=True)
    return list(kept), torch.stack(latents)
