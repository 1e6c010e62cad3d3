"""RealDPO (arXiv 2510.14955): real footage is the winner, the model's own takes of its caption are the losers.

What differs from the public code, and why:
- Real clips and takes pass through the same scaling ([-1, 1]); there, negatives were encoded from 0..255.
- The winner's forward serves all of its losers: 2 + 2N forwards instead of 4N.
- Losers are made anew from the current policy every `renew_every` steps, as the abstract promises.
- The moving average of the reference is kept in float32; in bf16 a decay of .999 rounds to 1.
- `sft_weight` adds the diffusion loss on the real clip, so that the winner's own error cannot rise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from besttake.algorithms.losses import check_dpo, dpo, drawn_errors
from besttake.algorithms.real_clips import encode_clips
from besttake.algorithms.takes import Takes, folder_of
from besttake.data.real import find_clips
from besttake.models.policy import warmed_up
from besttake.runtime.configuration import require
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import Run, TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """RealDPO."""

    data: str = "world"
    """Folder or table of real clips and their captions."""
    skip_bad: bool = False
    """Leave out clips that are unreadable, too short or too long of caption, with a warning, instead of stopping."""
    clips_per_step: int = 4
    negatives: int = 3
    """Takes of the model that each real clip is held against."""
    renew_every: int = 50
    """Steps after which the takes of a clip are made anew by the current policy; 0 = made once, before training."""
    beta: float = 100.0
    guard: float = 0.0
    """How hard a winner's error is kept from rising above the reference's (DPO-Positive); 0 = as in the paper."""
    sft_weight: float = 0.0
    """Weight of the diffusion loss on the real clip."""
    draws: int = 1
    """Times and noises that each row's errors are averaged over."""
    t_low: float = 0.0
    """Training times are drawn from [t_low, t_high]; the paper takes the low-noise half, [0, 0.5]."""
    t_high: float = 1.0
    reference: Literal["ema", "refresh", "fixed"] = "ema"
    reference_every: int = 10
    """Updates between two changes of the reference."""
    reference_decay: float = 0.9
    """theta_ref <- decay theta_ref + (1 - decay) theta, for `reference = "ema"`."""
    reference_warmup: bool = True
    """Have the decay rise from 0, being at most (1 + n) / (10 + n) after n changes; in the paper it is one number."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.clips_per_step < 1:
            raise ValueError(f"clips_per_step is {self.clips_per_step}; a step needs at least 1")
        check_dpo(self.beta, self.guard, self.draws)
        if self.negatives < 1:
            raise ValueError(f"negatives is {self.negatives}; a real clip needs at least 1 take to be held against")
        require(self.renew_every >= 0, "renew_every", self.renew_every, "0 or more")
        require(0 <= self.reference_decay <= 1, "reference_decay", self.reference_decay, "a decay in [0, 1]")
        if not 0 <= self.t_low < self.t_high <= 1:
            raise ValueError(f"t_low and t_high are {self.t_low} and {self.t_high}; expected a range within [0, 1]")

    def decay(self, change: int) -> float:
        """That of the reference's `change`-th change, from 1."""
        return warmed_up(self.reference_decay, change) if self.reference_warmup else self.reference_decay


def train(config: Config) -> Run:
    clips = find_clips(config.data, skip_bad=config.skip_bad)
    with Run(config, clips) as run:
        policy = run.policy
        captions, real = encode_clips(run, run.data, config.rollout, config.skip_bad)
        takes = Takes(policy, captions, config.rollout, config.negatives, config.seed, folder_of(run))
        for step, batch in run.steps(range(len(captions)), config.clips_per_step):
            losers = takes.of(batch, step, config.renew_every)
            takes.forget(before=run.oldest_kept() - config.renew_every if config.renew_every else 0)
            rows = takes.with_winner(real[batch], losers)
            generator, times = run.generator(step), (config.t_low, config.t_high, config.draws)
            condition = config.rollout.condition(policy.model, [captions[i] for i in batch], generator)
            errors = drawn_errors(policy, rows, condition, generator, *times)
            loss, watched = dpo(errors, config.beta, config.guard)
            loss = loss + config.sft_weight * errors.policy[:, 0]
            if run.update(loss.mean(), **watched) and run.every(config.reference_every):
                if config.reference == "ema":
                    policy.reference.ema(config.decay(run.updates // config.reference_every))
                elif config.reference == "refresh":
                    policy.reference.refresh()
    return run
