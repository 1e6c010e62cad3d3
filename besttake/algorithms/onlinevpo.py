"""OnlineVPO (Zhang et al. 2024, arXiv 2412.15159): online DPO on a video critic's ranking, with a curriculum.

`step` is the body of the paper's Algorithm 1: sample candidates, score them, pair best against worst, DPO loss. `train`
is the loop around it, and the curriculum: the reference becomes the current policy every `refresh_every` optimizer
updates.

What differs from the paper, and why:
- Pairing best against worst is our interpretation; the paper does not state a rule.
- The paper does not give beta; the recipes' value is from a sweep.
- Ties are dropped and counted.
- `dpop_weight` and `timesteps_per_pair`, off by default: DPO-Positive, and a log-ratio averaged over several times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from besttake.algorithms.errors import sampled_errors
from besttake.algorithms.losses import check_dpo, dpo
from besttake.algorithms.pairing import best_against_worst
from besttake.data.prompts import read_prompts
from besttake.models import VideoModel
from besttake.models.policy import Policy
from besttake.rewards.panel import Panel, RewardConfig, load_panel
from besttake.runtime.configuration import require
from besttake.runtime.devices import find_device
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.training.run import Metrics, Run, TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """OnlineVPO."""

    data: str = "world-train"
    """Prompts: a file, an embedded list, or hf:USER/NAME. One prompt a line; of datasets see docs/data.md."""
    skip_bad: bool = False
    """Skip unusable prompts, with a warning: too long, or without the first frame they need."""
    prompts_per_step: int = 4
    """Prompts sampled in a step."""
    candidates: int = 4
    """Candidate videos per prompt; the best is paired with the worst."""
    beta: float = 500.0
    """DPO's beta; larger = closer to the reference."""
    dpop_weight: float = 0.0
    """DPO-Positive: penalty on the winner's own error; 0 = plain DPO, as in the paper."""
    margin: float = 0.0
    """Smallest score difference in a pair; pairs at or below it are dropped."""
    timesteps_per_pair: int = 1
    """Noise/timestep samples per pair."""
    refresh_every: int = 20
    """Updates between refreshes of the reference; 0 = fixed. Each copies the policy (the curriculum)."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling of candidates."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Critics that rank the candidates."""

    def __post_init__(self):
        super().__post_init__()
        require(self.prompts_per_step >= 1, "prompts_per_step", self.prompts_per_step, "1 or more")
        require(self.candidates >= 2, "candidates", self.candidates, "2 or more, the best against the worst")
        require(self.margin >= 0, "margin", self.margin, "a difference of scores, 0 or more")
        check_dpo(self.beta, self.dpop_weight, self.timesteps_per_pair)


def train(config: Config) -> Run:
    prompts = read_prompts(config.data, config.skip_bad)
    reward = load_panel(config.reward, find_device(config.device))
    with Run(config, prompts, critic=reward) as run:
        policy = run.policy
        prompts = policy.model.check_prompts(run.data, config.skip_bad)
        policy.model.prompts.prepare(prompts)
        check_reward(reward, prompts[0], config.rollout, policy.model)
        for number, batch in run.steps(prompts, config.prompts_per_step):
            loss, metrics = step(policy, reward, batch, config, key=(config.seed, number))
            if run.update(loss, metrics) and run.every(config.refresh_every):
                policy.reference.refresh()
    return run


def step(
    policy: Policy, reward: Panel, batch: list[str], config: Config, key: tuple[int, int]
) -> tuple[Tensor | None, Metrics]:
    """The loss of a batch of prompts, and its metrics; None instead of a loss if no prompt has a pair.

    Args:
        key: seed and step, which determine all random numbers.
    """
    candidates = generate(policy, batch, config.rollout, n=config.candidates, seed=key)
    scores = reward(candidates.videos, candidates.prompts, policy.model.fps)
    pairs, counts = best_against_worst(candidates, scores, config.margin)
    metrics = {**scores.metrics, **counts}
    del candidates  # free the videos before the loss
    if not len(pairs):
        return None, metrics
    errors = sampled_errors(
        policy, pairs.clips, pairs.condition, keyed_generator(*key), timesteps_per_pair=config.timesteps_per_pair
    )
    loss, dpo_metrics = dpo(errors, config.beta, config.dpop_weight)
    return loss.mean(), metrics | dpo_metrics


def check_reward(reward: Panel, prompt: str, config: RolloutConfig, model: VideoModel) -> None:
    """Score a clip of noise, so that a critic that fails does so before anything is sampled."""
    frames, height, width = config.size(model)
    noise = torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    state = reward.state()
    reward(2 * noise - 1, [prompt], model.fps)
    reward.load_state(state)  # undo the effect on running means


def plan_batch(policy: Policy, config: Config, prompts: Iterator[str]) -> list[str]:
    """A batch for `step`, for `besttake plan`."""
    return [next(prompts) for _ in range(config.prompts_per_step)]
