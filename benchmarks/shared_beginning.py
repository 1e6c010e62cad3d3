"""Takes that share the beginning of their path: what it saves, and what becomes of their differences and their quality.

    python benchmarks/shared_beginning.py          # 32 prompts x 8 takes of tiny-cogvideox; minutes

For each share of the steps: passes of the denoiser relative to takes of their own, the critic's mean score, the mean
difference between a prompt's best and worst take, and how far apart their latents are (mean deviation within a prompt).
The critic is the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import tyro

from besttake.commands.cli import read_recipe
from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.rewards.panel import load_panel
from besttake.runtime.devices import describe_device, find_device
from besttake.sampling.rollout import RolloutConfig, generate


@dataclass(frozen=True)
class SharedConfig:
    """Compare shares of the steps that takes have in common."""

    recipe: str = "onlinevpo-tiny"
    prompts: str = "world-validation"
    count: int = 32
    takes: int = 8
    steps: int = 16
    shares: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5)
    device: str = "auto"


def main(config: SharedConfig) -> None:
    device, recipe = find_device(config.device), read_recipe(config.recipe)
    model, critic = load_model(recipe.model, device=device), load_panel(recipe.reward, device)
    prompts = read_prompts(config.prompts)[: config.count]
    print(f"{recipe.model}, {len(prompts)} prompts x {config.takes} takes, {config.steps} steps")
    print(f"{describe_device(device)}, {torch.get_num_threads()} threads\n")
    print("shared | passes | mean score | best - worst | deviation of latents\n--- | --- | --- | --- | ---")
    for share in config.shares:
        settings = replace(RolloutConfig(steps=config.steps, guidance=1.0), shared=share)
        takes = generate(model, prompts, settings, n=config.takes)
        scores = critic(takes.videos, takes.prompts, model.fps).votes.view(-1, config.takes)
        apart = takes.latents.view(len(prompts), config.takes, -1).std(1).mean()
        passes = 1 - share + share / config.takes
        spread = (scores.amax(1) - scores.amin(1)).mean()
        print(f"{share:g} | {passes:.2f} | {scores.mean():.2f} | {spread:.2f} | {apart:.3f}", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(tyro.cli(SharedConfig))
