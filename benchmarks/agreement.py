"""Signal in the preference gradient, by the number of candidates from which best and worst are chosen.

    python benchmarks/agreement.py                   # 32 prompts x 2, 4 and 8 candidates; three minutes

Prints a Markdown table with the cosine between the OnlineVPO gradients of two halves of the prompts at the base model,
for each number of candidates: 1 if all prompts agree, 0 if the gradients are noise. The critic is the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from besttake.algorithms.onlinevpo import Config, step
from besttake.commands.cli import read_recipe
from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.models.policy import Policy
from besttake.rewards.panel import load_panel


@dataclass(frozen=True)
class GradientAgreementConfig:
    """Recipe and sizes."""

    recipe: str = "onlinevpo-tiny"
    candidates: tuple[int, ...] = (2, 4, 8)
    prompts: int = 32
    timesteps_per_pair: int = 8
    seed: int = 9


def main(config: GradientAgreementConfig) -> None:
    """Print the table."""
    recipe = replace(read_recipe(config.recipe), timesteps_per_pair=config.timesteps_per_pair)
    prompts = read_prompts(recipe.data)[: config.prompts]
    policy, critic = Policy(load_model(recipe.model), recipe.policy), load_panel(recipe.reward)
    print("| candidates per prompt | cosine of two halves' gradients |\n| --- | --- |")
    for n in config.candidates:
        first, second = (gradient(policy, critic, prompts[half::2], n, recipe, config.seed + half) for half in range(2))
        print(f"| {n} | {torch.cosine_similarity(first, second, 0):.2f} |")


def gradient(policy: Policy, critic, prompts: list[str], n: int, recipe: Config, seed: int) -> Tensor:
    """The flattened gradient of the prompts' mean loss."""
    loss, _ = step(policy, critic, prompts, replace(recipe, candidates=n), (seed, 0))
    if loss is None:
        raise SystemExit("no prompt has a pair: all candidates tie; raise --prompts")
    parts = torch.autograd.grad(loss, list(policy.trainable.values()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


if __name__ == "__main__":
    main(tyro.cli(GradientAgreementConfig))
