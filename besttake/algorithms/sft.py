"""Supervised fine-tuning on real clips: the baseline for preference methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from besttake.algorithms.errors import draw_noise, sft_error
from besttake.algorithms.real_clips import ClipBatch, drop_captions, empty_batch, encode_clips
from besttake.data.real import find_clips
from besttake.models.policy import Policy
from besttake.runtime.configuration import require
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import Metrics, Run, TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """SFT."""

    data: str = "world"
    """Real clips and captions: a folder, a table, or hf:USER/NAME."""
    skip_bad: bool = False
    """Skip unusable clips, with a warning: unreadable, too short, or with too long a caption."""
    clips_per_step: int = 8
    """Clips trained on in a step."""
    caption_dropout: float = 0.0
    """Caption dropout: fraction of captions replaced by the empty prompt, for guidance; 0.1 is usual."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Size of the clips."""

    def __post_init__(self):
        super().__post_init__()
        require(self.clips_per_step >= 1, "clips_per_step", self.clips_per_step, "1 or more")
        require(
            0 <= self.caption_dropout < 1, "caption_dropout", self.caption_dropout, "a fraction of captions, in [0, 1)"
        )


def train(config: Config) -> Run:
    found = find_clips(config.data, skip_bad=config.skip_bad)
    with Run(config, found) as run:
        clips = encode_clips(run, run.data, config.rollout, config.skip_bad)
        for number, batch in run.steps(range(len(clips)), config.clips_per_step):
            loss, metrics = step(run.policy, None, clips.batch(batch), config, key=(config.seed, number))
            run.update(loss, metrics)
    return run


def step(
    policy: Policy, reward: None, batch: ClipBatch, config: Config, key: tuple[int, int]
) -> tuple[Tensor, Metrics]:
    """The diffusion loss of a batch of real clips, and its metrics (none).

    Args:
        key: seed and step, which determine all random numbers.
    """
    model, x_0, generator = policy.model, batch.clips[:, 0], keyed_generator(*key)
    t = model.schedule_for(x_0.shape).sample_times(len(x_0), generator).to(x_0.device)
    condition = config.rollout.condition(model, batch.captions, generator)
    condition = drop_captions(model, condition, config.caption_dropout, key)
    error = sft_error(policy, x_0, condition, t, draw_noise(x_0.shape, generator, like=x_0))
    return error.mean(), {}


def plan_batch(policy: Policy, config: Config, prompts: Iterator[str]) -> ClipBatch:
    """A batch for `step`, for `besttake plan`."""
    return empty_batch(policy.model, config.rollout, prompts, config.clips_per_step, clips=1)
