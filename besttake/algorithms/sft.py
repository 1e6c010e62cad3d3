"""Supervised fine-tuning on real clips: the baseline that every preference method has to beat."""

from __future__ import annotations

from dataclasses import dataclass, field

from besttake.algorithms.losses import draw_noise, sft_error
from besttake.algorithms.real_clips import encode_clips
from besttake.data.real import find_clips
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import Run, TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """SFT."""

    data: str = "world"
    """Folder or table of real clips and their captions."""
    skip_bad: bool = False
    """Leave out clips that are unreadable, too short or too long of caption, with a warning, instead of stopping."""
    clips_per_step: int = 8
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Gives the size of the clips."""

    def __post_init__(self):
        super().__post_init__()
        if self.clips_per_step < 1:
            raise ValueError(f"clips_per_step is {self.clips_per_step}; a step needs at least 1")


def train(config: Config) -> Run:
    clips = find_clips(config.data, skip_bad=config.skip_bad)
    with Run(config, clips) as run:
        captions, real = encode_clips(run, run.data, config.rollout, config.skip_bad)
        for step, batch in run.steps(range(len(captions)), config.clips_per_step):
            x_0, generator = real[batch], run.generator(step)
            t = run.model.schedule_for(x_0.shape).sample_times(len(x_0), generator).to(x_0.device)
            condition = config.rollout.condition(run.model, [captions[i] for i in batch], generator)
            error = sft_error(run.policy, x_0, condition, t, draw_noise(x_0.shape, generator, like=x_0))
            run.update(error.mean())
    return run
