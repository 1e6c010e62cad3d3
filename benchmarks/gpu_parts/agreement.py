"""Do rollouts in fewer bits, merged or compiled give the winner and the loser of exact ones?

A trained tiny model with a LoRA of random matrices samples the same prompts from the same noise each time, and
`onlinevpo-tiny`'s critic scores them. The exact rollout is in float32, its LoRA computed apart.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timing import Rows, free, in_one_line, synchronize
from torch import Tensor

from besttake.commands.cli import read_recipe
from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.models.compiled import compile_blocks
from besttake.models.policy import Policy, PolicyConfig
from besttake.rewards.panel import Panel, load_panel
from besttake.sampling.rollout import RolloutConfig, generate


@dataclass(frozen=True)
class Way:
    """How a rollout is computed."""

    dtype: torch.dtype = torch.bfloat16
    merged: bool = True
    compiled: bool = False
    bits: Any = "none"
    fp8: bool = False


WAYS = {
    "float32, LoRA apart": Way(torch.float32, merged=False),
    "float32, merged": Way(torch.float32),
    "bfloat16, LoRA apart": Way(merged=False),
    "bfloat16, merged": Way(),
    "bfloat16, merged, compiled": Way(compiled=True),
    "float8 products": Way(fp8=True),
    "fp8 base": Way(bits="fp8"),
    "int8 base": Way(bits="int8"),
}
"""The first is the exact one."""

QUICK = ("float32, LoRA apart", "bfloat16, merged", "fp8 base")
"""Enough for a trial."""


def agreement(source: str, rows: Rows, tiny: bool) -> None:
    """Shares of prompts of equal winner, loser and both; the margin kept; seconds."""
    device, count, n, steps = ("cpu", 2, 2, 2) if tiny else ("cuda", 64, 4, 16)
    prompts = read_prompts("world-test")[:count]
    critic, exact = load_panel(read_recipe("onlinevpo-tiny").reward, device), None
    for name, way in WAYS.items():
        if tiny and name not in QUICK:
            continue
        try:
            began = time.perf_counter()
            scores = score(make_policy(source, way, device), critic, prompts, n, steps, way.fp8)
        except (ImportError, RuntimeError, ValueError) as error:
            rows[name] = {"failed": in_one_line(error)}
            continue
        exact = scores if exact is None else exact
        rows[name] = compared(scores, exact) | {"seconds": round(time.perf_counter() - began, 2)}
        free()


def make_policy(source: str, way: Way, device: str) -> Policy:
    """A policy whose LoRA matrices are random, the same for every way."""
    policy = Policy(load_model(source, way.dtype, device, way.bits), PolicyConfig(rank=8))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable.values():
            weight += 0.02 * torch.randn(weight.shape, generator=generator).to(weight)
    if not way.merged:
        vars(policy)["merged"] = nullcontext
    if way.compiled:
        for denoiser in policy.model.denoisers.values():
            compile_blocks(denoiser)
    return policy


def score(policy: Policy, critic: Panel, prompts: list[str], n: int, steps: int, fp8: bool) -> Tensor:
    """(prompts, n) scores of the candidates."""
    found = generate(policy, prompts, RolloutConfig(steps=steps, guidance=2.0, batch=64, fp8=fp8), n=n)
    with torch.no_grad():
        values = critic(found.videos, found.prompts, policy.model.fps).values[:, 0]
    synchronize()
    return values.view(-1, n).float().cpu()


def compared(scores: Tensor, exact: Tensor) -> dict[str, float]:
    """How often best and worst are the exact ones, and how much of the exact margin the chosen pair has."""
    best, worst = scores.argmax(1, True), scores.argmin(1, True)
    winner, loser = best == exact.argmax(1, True), worst == exact.argmin(1, True)
    margin = (exact.gather(1, best) - exact.gather(1, worst)).mean() / (exact.amax(1) - exact.amin(1)).mean()
    shares = {"winner": winner, "loser": loser, "both": winner & loser}
    return {name: round(float(hit.float().mean()), 3) for name, hit in shares.items()} | {
        "margin kept": round(float(margin), 3),
        "score moves by": round(float((scores - exact).abs().mean()), 6),
    }
