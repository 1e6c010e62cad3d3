"""Do cheaper rollouts give the same winner and loser as full ones, and what do they save?

Every rollout variant gets the same prompts and noise as the full one, and the same critic scores all. Columns of the
printed Markdown table: denoiser FLOPs relative to the full rollout (counted on the first batch); pairs per hour at real
sizes, in multiples of the full rollout, by FLOPs (sampling, decoding, and a DPO update with gradient checkpointing,
without the critic); seconds on this machine (CPU time or wall-clock time on a GPU); how often the winner, the loser and
both are those of the full rollout, with a 95 % interval (bootstrap over prompts); and the margin of the chosen pair by
the full rollout's scores, relative to that of the full rollout's best and worst candidate.

    python benchmarks/rollout_agreement.py                                # two hours on one core; resumes
    python benchmarks/rollout_agreement.py --model tiny-wan --prompts 24 --candidates 4 --variants full evaluations-14
    python benchmarks/rollout_agreement.py --steps 8 --guidance 1 --variants full evaluations-6 evaluations-5
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan, CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import Tensor

from besttake.commands.cli import read_recipe
from besttake.data.files import atomic
from besttake.data.prompts import read_prompts
from besttake.models import VideoModel, load_model
from besttake.plan.measured import flop_counter
from besttake.rewards.panel import Panel, load_panel
from besttake.runtime.devices import describe_device, find_device, keep_freed_memory
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.sampling.step_cache import CacheConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    **{f"evaluations-{k}": {"evaluations": k} for k in (20, 16, 14, 12, 6, 5)},
    "steps-14": {"steps": 14},
    "evaluations-14-guidance-early": {"evaluations": 14, "guidance_interval": (0.3, 1.0)},
    "evaluations-20-guidance-early": {"evaluations": 20, "guidance_interval": (0.5, 1.0)},
    "fp8": {"fp8": True},
    "taylorseer": {"cache": CacheConfig("taylorseer", every=4)},
    "taylorseer-5": {"cache": CacheConfig("taylorseer", every=5)},
}


@dataclass(frozen=True)
class RolloutAgreementConfig:
    """Compare rollout variants with the full rollout."""

    model: str = "tiny-cogvideox"
    recipe: str = "onlinevpo-tiny"
    """Recipe whose critic scores the candidates."""
    data: str = "world-test"
    """Prompts; settings were chosen on world-validation."""
    prompts: int = 64
    candidates: tuple[int, ...] = (4, 8)
    """Group sizes; candidates are sampled for the largest."""
    steps: int = 50
    guidance: float = 2.0
    batch: int = 32
    variants: tuple[str, ...] = ("full", "evaluations-16", "evaluations-14", "steps-14")
    device: str = "auto"
    dtype: str = "float32"
    """bfloat16 for fp8."""
    out: Path = Path("runs/rollout_agreement")
    """Folder for the scores of every variant, which are not computed again."""

    def __post_init__(self):
        if unknown := set(self.variants) - set(VARIANTS):
            raise ValueError(f"unknown variant {', '.join(sorted(unknown))}; expected {', '.join(VARIANTS)}")


def main(config: RolloutAgreementConfig) -> None:
    keep_freed_memory()
    device = find_device(config.device)
    model, critic = (
        load_model(config.model, getattr(torch, config.dtype), device),
        load_panel(read_recipe(config.recipe).reward, device),
    )
    prompts = read_prompts(config.data)[: config.prompts]
    print(f"{config.model}, {len(prompts)} prompts, {config.steps} steps, guidance {config.guidance}")
    print(f"{describe_device(device)}, {torch.get_num_threads()} threads\n")
    sampled, full = max(config.candidates), measure("full", model, critic, prompts, config)
    for n in config.candidates:
        print(f"\n{n} candidates | FLOPs | {' | '.join(real_costs())} | seconds | winner | loser | both | margin")
        print("--- | " * 8 + "---", flush=True)
        for variant in config.variants:
            print(row(variant, measure(variant, model, critic, prompts, config), full, n, sampled), flush=True)


def measure(
    variant: str, model: VideoModel, critic: Panel, prompts: list[str], config: RolloutAgreementConfig
) -> dict[str, Any]:
    """Scores and cost of one variant, from disk if it was measured before."""
    n = max(config.candidates)
    size = f"{config.steps}-{config.guidance:g}-{len(prompts)}x{n}"
    size += "" if config.dtype == "float32" else f"-{config.dtype}"
    path = config.out / f"{config.model}-{Path(config.data).stem}-{size}-{variant}.json"
    if path.exists():
        return json.loads(path.read_text())
    settings = RolloutConfig(steps=config.steps, guidance=config.guidance, batch=config.batch)
    settings = replace(settings, **VARIANTS[variant])
    model.encode_prompts(prompts), model.encode_negative(1)  # equal cost for all variants
    batch = prompts[: config.batch // n]
    result: dict[str, Any] = {"scores": [], "seconds": 0.0}
    result["flops"] = counted(lambda: generate(model, batch, settings, n=n, decode=False))
    with torch.no_grad():
        for start in range(0, len(prompts), config.batch // n):
            began = clock(model)
            candidates = generate(model, prompts[start : start + config.batch // n], settings, n=n)
            result["seconds"] += clock(model) - began
            result["scores"] += critic(candidates.videos, candidates.prompts, model.fps).values[:, 0].tolist()
    config.out.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write_text(json.dumps(result))
    return result


def counted(work: Callable[[], Any]) -> int:
    """FLOPs of a function call."""
    with flop_counter() as counter:
        work()
    return counter.get_total_flops()


def clock(model: VideoModel) -> float:
    if model.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def groups(scores: list[float], n: int, sampled: int) -> Tensor:
    """Scores (prompts, n) of the first `n` of the `sampled` candidates of each prompt."""
    return torch.tensor(scores).view(-1, sampled)[:, :n]


def row(variant: str, result: dict[str, Any], full: dict[str, Any], n: int, sampled: int) -> str:
    scores, true = groups(result["scores"], n, sampled), groups(full["scores"], n, sampled)
    best, worst = scores.argmax(1, True), scores.argmin(1, True)
    winner, loser = (best == true.argmax(1, True)).float(), (worst == true.argmin(1, True)).float()
    margin = (true.gather(1, best) - true.gather(1, worst)).mean() / (true.amax(1) - true.amin(1)).mean()
    cost = result["flops"] / full["flops"]
    return f"{variant} | {cost:.2f} | {speed(cost, n)} | {result['seconds']:.0f} | {hits(winner, loser)} | {margin:.3f}"


def hits(winner: Tensor, loser: Tensor) -> str:
    low, high = interval(winner * loser)
    return f"{winner.mean():.2f} | {loser.mean():.2f} | {(winner * loser).mean():.2f} ({low:.2f}-{high:.2f})"


def speed(cost: float, n: int) -> str:
    """Pairs per hour at each real size, relative to 50 steps with guidance."""
    gains = []
    for forward, decoder in real_costs().values():
        # an update on two clips: the policy's forward, recomputation and backward (2 forwards); the reference's forward
        update = 10 * forward
        full, variant = (n * (100 * share * forward + decoder) + update for share in (1, cost))
        gains.append(f"{full / variant:.2f}")
    return " | ".join(gains)


@functools.cache
def real_costs() -> dict[str, tuple[int, int]]:
    """FLOPs of a denoiser's forward pass and of decoding a clip, at the models' real sizes."""
    with torch.device("meta"), torch.no_grad():
        cogvideox, wan = (
            CogVideoXTransformer3DModel(),
            WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30),
        )
        latents, clip = torch.empty(1, 13, 16, 60, 90), torch.empty(1, 16, 21, 60, 104)
        return {
            "CogVideoX-2B, 49 x 480 x 720": (
                counted(lambda: cogvideox(latents, torch.empty(1, 226, 4096), torch.empty(1))),
                counted(lambda: AutoencoderKLCogVideoX().decode(latents.transpose(1, 2))),
            ),
            "Wan 1.3B, 81 x 480 x 832": (
                counted(lambda: wan(clip, torch.zeros(1), torch.empty(1, 512, 4096))),
                counted(lambda: AutoencoderKLWan().decode(clip)),
            ),
        }


def interval(hits: Tensor, n_resamples: int = 4000) -> tuple[float, float]:
    """The 95 % interval of a mean over prompts, by bootstrap."""
    hits, generator = hits.flatten(), torch.Generator().manual_seed(0)
    means = hits[torch.randint(len(hits), (n_resamples, len(hits)), generator=generator)].mean(1)
    return means.quantile(0.025).item(), means.quantile(0.975).item()


if __name__ == "__main__":
    main(tyro.cli(RolloutAgreementConfig))
