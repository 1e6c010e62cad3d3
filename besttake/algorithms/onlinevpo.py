"""OnlineVPO (Zhang et al. 2024, arXiv 2412.15159): online DPO on a video critic's ranking, with a curriculum.

What differs from the paper, and why:
- The pair rule, best against worst, is our reading; the paper names no other.
- beta is not given there; the recipes hold what a sweep found.
- Pairs that the critic cannot tell apart are dropped and counted, never paired with themselves.
- `guard` and `draws`, off by default: DPO-Positive, and a log-ratio of more than one time and noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from besttake.algorithms.losses import check_dpo, dpo, drawn_errors
from besttake.algorithms.pairing import Pairs, best_against_worst, extremes
from besttake.data.prompts import read_prompts
from besttake.models import VideoModel
from besttake.models.policy import Policy
from besttake.rewards.panel import Ballots, Panel, RewardConfig, load_panel
from besttake.runtime.configuration import require
from besttake.runtime.devices import find_device
from besttake.sampling.rollout import Preview, RolloutConfig, generate
from besttake.training.run import Run, TrainConfig
from besttake.types import Video


@dataclass(frozen=True)
class Config(TrainConfig):
    """OnlineVPO."""

    data: str = "world-train"
    """File of prompts, one a line, or the name of an embedded list."""
    skip_bad: bool = False
    """Leave out prompts that are too long or lack their first frame, with a warning, instead of stopping."""
    prompts_per_step: int = 4
    candidates: int = 4
    """Takes of each prompt, of which the best is held against the worst."""
    beta: float = 500.0
    """How far the policy may move from its reference: smaller = further."""
    guard: float = 0.0
    """How hard a winner's error is kept from rising above the reference's (DPO-Positive); 0 = as in the paper."""
    margin: float = 0.0
    """Pairs whose scores differ by no more are dropped."""
    draws: int = 1
    """Times and noises that each pair's errors are averaged over."""
    preview_at: float = 0.0
    """Share of the steps after which takes are decoded as they look then; 0 = never."""
    preview_keeps: int = 3
    """Takes of a prompt that are finished after a preview: those that the critic finds best and worst."""
    refresh_every: int = 20
    """Updates between hard copies of the policy into the reference; 0 = the reference stays."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.prompts_per_step < 1:
            raise ValueError(f"prompts_per_step is {self.prompts_per_step}; a step needs at least 1")
        if self.candidates < 2:
            raise ValueError(f"candidates is {self.candidates}; best against worst needs at least 2")
        if self.margin < 0:
            raise ValueError(f"margin is {self.margin}; a difference of scores is at least 0")
        require(0 <= self.preview_at < 1, "preview_at", self.preview_at, "a share of the steps, in [0, 1)")
        keeps = not self.preview_at or 2 <= self.preview_keeps <= self.candidates
        require(keeps, "preview_keeps", self.preview_keeps, f"2 to all {self.candidates} candidates")
        check_dpo(self.beta, self.guard, self.draws)


def train(config: Config) -> Run:
    prompts = read_prompts(config.data, config.skip_bad)
    critic = load_panel(config.reward, find_device(config.device))
    with Run(config, prompts, critic=critic) as run:
        prompts = run.data
        policy, fps = run.policy, config.rollout.rate(run.policy.model)
        prompts = policy.model.check_prompts(prompts, config.skip_bad)
        policy.model.prepare(prompts)
        try_critic(critic, prompts[0], config.rollout, policy.model)
        preview = half_done(config, critic, fps)
        for step, batch in run.steps(prompts, config.prompts_per_step):
            seed = config.seed, step
            takes = generate(policy, batch, config.rollout, n=config.candidates, seed=seed, preview=preview)
            scores = critic(takes.videos, takes.prompts, fps)
            pairs, counts = best_against_worst(takes, scores, config.margin)
            loss, watched = pair_loss(policy, pairs, config, run.generator(step)) if len(pairs) else (None, {})
            if run.update(loss, **scores.said, **counts, **watched) and run.every(config.refresh_every):
                policy.reference.refresh()
    return run


def try_critic(critic: Panel, prompt: str, config: RolloutConfig, model: VideoModel) -> None:
    """Show the critic a clip of noise, so that one that cannot score is found out before anything is shot."""
    frames, height, width = config.size(model)
    shape = 1, min(config.decoded or frames, frames), 3, height, width
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    by_the_way(critic, 2 * noise - 1, [prompt], config.rate(model))


def half_done(config: Config, critic: Panel, fps: float) -> Preview | None:
    """Where previews are asked for: of the takes, those that the critic finds neither best nor worst are dropped."""

    def choose(videos: Video, prompts: list[str]) -> Tensor:
        return extremes(by_the_way(critic, videos, prompts, fps), config.candidates, config.preview_keeps)

    return Preview(config.preview_at, choose) if config.preview_at else None


def by_the_way(critic: Panel, videos: Video, prompts: list[str], fps: float) -> Ballots:
    """What the critic says, without a trace in its running means."""
    seen = critic.state()
    ballots = critic(videos, prompts, fps)
    critic.load_state(seen)
    return ballots


def pair_loss(policy: Policy, pairs: Pairs, config: Config, generator: torch.Generator):
    """The DPO loss of pairs whose winner and loser share a time and a noise, drawn for this step."""
    errors = drawn_errors(policy, pairs.clips, pairs.condition, generator, draws=config.draws)
    loss, watched = dpo(errors, config.beta, config.guard)
    return loss.mean(), watched
