"""How much of a preference gradient is signal? By the number of takes that best and worst are chosen from.

    python benchmarks/agreement.py                   # 32 prompts x 2, 4 and 8 takes of the base model; three minutes

Prints, for each N, the cosine between the OnlineVPO gradients of two halves of the prompts, at the base model, as a
Markdown table: 1 if prompts taught the same, 0 if each gradient were noise. The critic is the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from besttake.algorithms.onlinevpo import Config, pair_loss
from besttake.algorithms.pairing import best_against_worst
from besttake.commands.cli import read_recipe
from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.models.policy import Policy
from besttake.rewards.panel import load_panel
from besttake.sampling.rollout import generate


@dataclass(frozen=True)
class AgreementConfig:
    """Which recipe, and how much of it."""

    recipe: str = "onlinevpo-tiny"
    candidates: tuple[int, ...] = (2, 4, 8)
    prompts: int = 32
    timesteps_per_pair: int = 8
    seed: int = 9


def main(config: AgreementConfig) -> None:
    """Print the table."""
    recipe = replace(read_recipe(config.recipe), timesteps_per_pair=config.timesteps_per_pair)
    prompts = read_prompts(recipe.data)[: config.prompts]
    policy, critic = Policy(load_model(recipe.model), recipe.policy), load_panel(recipe.reward)
    print("| takes of a prompt | cosine of two halves' gradients |\n| --- | --- |")
    for n in config.candidates:
        first, second = (gradient(policy, critic, prompts[half::2], n, recipe, config.seed + half) for half in range(2))
        print(f"| {n} | {torch.cosine_similarity(first, second, 0):.2f} |")


def gradient(policy: Policy, critic, prompts: list[str], n: int, recipe: Config, seed: int) -> Tensor:
    """The gradient of the prompts' mean loss, flat."""
    takes = generate(policy, prompts, recipe.rollout, n=n, seed=(seed,))
    pairs, _ = best_against_worst(takes, critic(takes.videos, takes.prompts, policy.model.fps), recipe.margin)
    loss, _ = pair_loss(policy, pairs, recipe, torch.Generator().manual_seed(seed))
    parts = torch.autograd.grad(loss, list(policy.trainable.values()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


if __name__ == "__main__":
    main(tyro.cli(AgreementConfig))
