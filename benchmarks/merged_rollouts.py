"""Rollouts of a bfloat16 base with its LoRA merged (summed in float32, rounded once) or computed beside it: how close?

A run's trained adapter, at its full size and at parts of it (as early in training), on the embedded model. Everything
is compared with a float32 base and adapter: the denoiser's prediction, as a share of what the adapter changes in it;
and the critic's scores of rollouts from the same noise: their correlation, and how often winner and loser are the same.

    besttake train onlinevpo-tiny --dtype bfloat16 --steps 50 --out runs/half
    python benchmarks/merged_rollouts.py --run runs/half
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor

from besttake.commands.cli import read_recipe
from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.models.policy import Policy
from besttake.rewards.panel import load_panel
from besttake.runtime.devices import keep_freed_memory
from besttake.sampling.rollout import RolloutConfig, generate


@dataclass(frozen=True)
class MergedRolloutsConfig:
    """Compare merged and unmerged rollouts."""

    run: Path
    """Folder of a run of `onlinevpo-tiny`; its newest checkpoint's adapter is used."""
    prompts: int = 24
    candidates: int = 4
    shares: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Parts of the adapter's change."""


def main(config: MergedRolloutsConfig) -> None:
    keep_freed_memory()
    recipe = read_recipe("onlinevpo-tiny")
    newest = max((config.run / "checkpoints").iterdir())
    weights = load_file(newest / "training.safetensors")
    critic, prompts = load_panel(recipe.reward, "cpu"), read_prompts("world-test")[: config.prompts]
    policies = {
        dtype: Policy(load_model(recipe.model, dtype), recipe.policy) for dtype in (torch.float32, torch.bfloat16)
    }

    def run(policy: Policy) -> tuple[Tensor, Tensor]:
        model, inputs = policy.model, torch.Generator().manual_seed(0)
        x_t = torch.randn(8, *model.latent_shape(*model.default_size()), generator=inputs)
        with torch.no_grad():
            with policy.merged():
                prediction = policy.predict(x_t, torch.linspace(0.1, 0.9, 8), model.encode_prompts(prompts[:8])).float()
            videos = generate(policy, prompts, RolloutConfig(steps=8, guidance=1.0, batch=32), n=config.candidates)
            return prediction, critic(videos.videos, videos.prompts, model.fps).values[:, 0].view(-1, config.candidates)

    print(f"{newest}, {len(prompts)} prompts of {config.candidates} candidates, 8 steps\n")
    print(
        "| share of the adapter | base | prediction's error / adapter's effect | scores' correlation | winner | loser |"
    )
    print("| --- " * 6 + "|")
    for share in config.shares:
        for policy in policies.values():
            load(policy, weights, share)
        exact, scores = run(policies[torch.float32])
        load(policies[torch.float32], weights, 0.0)
        effect = (exact - run(policies[torch.float32])[0]).norm()
        rows = {"bfloat16, merged": run(policies[torch.bfloat16])}
        with patch.object(Policy, "merged", lambda _: nullcontext()):
            rows["bfloat16, beside"] = run(policies[torch.bfloat16])
        for name, (prediction, found) in rows.items():
            error = float((prediction - exact).norm() / effect)
            together = float(torch.corrcoef(torch.stack([found.flatten(), scores.flatten()]))[0, 1])
            winner, loser = (float((f(found) == f(scores)).float().mean()) for f in (best, worst))
            print(f"| {share:g} | {name} | {error:.3f} | {together:.4f} | {winner:.2f} | {loser:.2f} |", flush=True)


def load(policy: Policy, weights: dict[str, Tensor], share: float) -> None:
    """Set an adapter to a part of a checkpoint's."""
    for name, weight in policy.trainable.items():
        weight.data.copy_(weights[f"policy/{name}"] * (share if "lora_B" in name else 1.0))


def best(scores: Tensor) -> Tensor:
    return scores.argmax(1)


def worst(scores: Tensor) -> Tensor:
    return scores.argmin(1)


if __name__ == "__main__":
    main(tyro.cli(MergedRolloutsConfig))
