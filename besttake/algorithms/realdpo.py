"""RealDPO (arXiv 2510.14955): real clips are the winners, the model's own samples of their captions the losers.

What differs from the public code, and why:
- Real clips and samples are scaled in the same way, to [-1, 1]; the public code encodes negatives from 0..255.
- The winner's forward pass is shared by all of its losers: 2 + 2N forward passes instead of 4N.
- Losers are sampled anew from the current policy every `regenerate_every` steps, as the abstract says.
- The EMA reference is kept in float32; in bfloat16 a decay of .999 rounds to 1.
- `sft_weight` adds the diffusion loss on the real clip, which keeps the winner's own error from rising.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from besttake.algorithms.errors import sampled_errors
from besttake.algorithms.losses import check_dpo, dpo
from besttake.algorithms.negatives import NegativeSamples, negatives_folder
from besttake.algorithms.real_clips import ClipBatch, drop_captions, empty_batch, encode_clips
from besttake.data.real import find_clips
from besttake.evaluation.before_after import batches
from besttake.models.policy import Policy, ema_decay_at
from besttake.runtime.configuration import require
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.training.run import Metrics, Run, TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """RealDPO."""

    data: str = "world"
    """Real clips and captions: a folder, a table, or hf:USER/NAME."""
    skip_bad: bool = False
    """Skip unusable clips, with a warning: unreadable, too short, or with too long a caption."""
    clips_per_step: int = 4
    """Real clips trained on in a step."""
    negatives: int = 3
    """Negative samples per real clip."""
    regenerate_every: int = 50
    """Steps after which negatives are sampled anew from the current policy; 0 = sampled once."""
    beta: float = 100.0
    """DPO's beta; larger = closer to the reference."""
    dpop_weight: float = 0.0
    """DPO-Positive: penalty on the winner's own error; 0 = plain DPO, as in the paper."""
    sft_weight: float = 0.0
    """Weight of the diffusion loss on the real clip."""
    caption_dropout: float = 0.0
    """Caption dropout: fraction of captions replaced by the empty prompt, for guidance; 0.1 is usual."""
    timesteps_per_pair: int = 1
    """Noise/timestep samples per real clip."""
    t_low: float = 0.0
    """Lowest training time; 0 = no noise. The paper trains on the low-noise half, [0, 0.5]."""
    t_high: float = 1.0
    """Highest training time; 1 = noise."""
    reference: Literal["ema", "refresh", "fixed"] = "ema"
    """Reference model: ema of the policy, refresh (copies of the policy), or fixed (the base model)."""
    reference_every: int = 10
    """Updates between changes of the reference."""
    reference_decay: float = 0.9
    """EMA decay of the reference: theta_ref <- decay theta_ref + (1 - decay) theta."""
    reference_warmup: bool = True
    """Warm-up of reference_decay: after n changes it is at most (1 + n) / (10 + n); not in the paper."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling of negatives, and size of all clips."""

    def __post_init__(self):
        super().__post_init__()
        require(self.clips_per_step >= 1, "clips_per_step", self.clips_per_step, "1 or more")
        require(
            0 <= self.caption_dropout < 1, "caption_dropout", self.caption_dropout, "a fraction of captions, in [0, 1)"
        )
        check_dpo(self.beta, self.dpop_weight, self.timesteps_per_pair)
        require(self.negatives >= 1, "negatives", self.negatives, "1 or more")
        require(self.regenerate_every >= 0, "regenerate_every", self.regenerate_every, "0 or more")
        require(0 <= self.reference_decay <= 1, "reference_decay", self.reference_decay, "a decay in [0, 1]")
        if not 0 <= self.t_low < self.t_high <= 1:
            raise ValueError(f"t_low and t_high are {self.t_low} and {self.t_high}; expected a range within [0, 1]")

    def decay(self, change: int) -> float:
        """The decay at the reference's `change`-th change, from 1."""
        return ema_decay_at(self.reference_decay, change) if self.reference_warmup else self.reference_decay


def train(config: Config) -> Run:
    found = find_clips(config.data, skip_bad=config.skip_bad)
    with Run(config, found) as run:
        policy = run.policy
        clips = encode_clips(run, run.data, config.rollout, config.skip_bad)
        negatives = NegativeSamples(
            policy, clips.captions, config.rollout, config.negatives, config.seed, negatives_folder(run)
        )
        for number, batch in run.steps(range(len(clips)), config.clips_per_step):
            losers = negatives.of(batch, number, config.regenerate_every)
            negatives.delete(
                before=run.oldest_resumable_step() - config.regenerate_every if config.regenerate_every else 0
            )
            pairs = clips.batch(batch).against(losers)
            loss, metrics = step(policy, None, pairs, config, key=(config.seed, number))
            if run.update(loss, metrics) and run.every(config.reference_every):
                if config.reference == "ema":
                    policy.reference.ema(config.decay(run.updates // config.reference_every))
                elif config.reference == "refresh":
                    policy.reference.refresh()
    return run


def step(
    policy: Policy, reward: None, batch: ClipBatch, config: Config, key: tuple[int, int]
) -> tuple[Tensor, Metrics]:
    """The loss of real clips, each against the policy's own samples, and its metrics.

    Args:
        key: seed and step, which determine all random numbers.
    """
    generator = keyed_generator(*key)
    condition = config.rollout.condition(policy.model, batch.captions, generator)
    condition = drop_captions(policy.model, condition, config.caption_dropout, key)
    times = config.t_low, config.t_high, config.timesteps_per_pair
    errors = sampled_errors(policy, batch.clips, condition, generator, *times)
    loss, metrics = dpo(errors, config.beta, config.dpop_weight)
    loss = loss + config.sft_weight * errors.policy[:, 0]
    return loss.mean(), metrics


def plan_batch(policy: Policy, config: Config, prompts: Iterator[str]) -> ClipBatch:
    """A batch for `step`, for `besttake plan`. Its negatives are sampled in batches as in training."""
    captions = [next(prompts) for _ in range(config.clips_per_step)]
    for some in batches(captions, max(1, config.rollout.batch // config.negatives)):
        generate(policy, some, config.rollout, n=config.negatives, decode=False)
    return empty_batch(policy.model, config.rollout, iter(captions), len(captions), clips=1 + config.negatives)


def sampling_share(config: Config, clips: float) -> float:
    """Fraction of the steps that sample negatives, for `besttake plan`.

    Args:
        clips: number of clips; infinity = no clip occurs twice before its negatives are sampled anew.
    """
    return min(1.0, clips / (config.clips_per_step * (config.regenerate_every or config.steps)))
