"""Do cheaper rollouts give the same winner and loser as full ones, and what do they save?

Every variant samples the same prompts from the same noise as the full rollout, and the same critic scores all. Printed
for each, as Markdown: denoiser FLOPs relative to the full rollout (counted on the first batch); the pairs an hour at
real sizes in multiples of the full rollout's, by FLOPs (sampling, decoding, and a DPO update with gradient
checkpointing; the critic is left out); seconds here (processor time on a CPU, wall-clock on a GPU); how often the
winner, the loser and both are those of the full rollout, with a 95 % interval (bootstrap over prompts); and how much of
the margin between the full rollout's best and worst candidate the chosen pair has by the full rollout's scores.

    python benchmarks/rollout_agreement.py                                # two hours on one core; resumes
    python benchmarks/rollout_agreement.py --model tiny-wan --prompts 24 --candidates 4 --ways full evaluations-14
    python benchmarks/rollout_agreement.py --steps 8 --guidance 1 --ways full evaluations-6 evaluations-5
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
from torch.utils.flop_counter import FlopCounterMode

from besttake.commands.cli import read_recipe
from besttake.data.files import atomic
from besttake.data.prompts import read_prompts
from besttake.models import VideoModel, load_model
from besttake.rewards.panel import Panel, load_panel
from besttake.runtime.devices import describe_device, find_device, keep_freed_memory
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.sampling.step_cache import CacheConfig

WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    **{f"evaluations-{n}": {"evaluations": n} for n in (20, 16, 14, 12, 6, 5)},
    "steps-14": {"steps": 14},
    "evaluations-14-guided-early": {"evaluations": 14, "guidance_interval": (0.3, 1.0)},
    "taylorseer": {"cache": CacheConfig("taylorseer", every=4)},
    "taylorseer-5": {"cache": CacheConfig("taylorseer", every=5)},
}


@dataclass(frozen=True)
class AgreementConfig:
    """Compare cheaper rollouts with the full one."""

    model: str = "tiny-cogvideox"
    recipe: str = "onlinevpo-tiny"
    """Whose critic scores."""
    data: str = "world-test"
    """Settings were chosen on world-validation."""
    prompts: int = 64
    candidates: tuple[int, ...] = (4, 8)
    """Candidates per prompt; the largest number is sampled."""
    steps: int = 50
    guidance: float = 2.0
    batch: int = 32
    ways: tuple[str, ...] = ("full", "evaluations-16", "evaluations-14", "steps-14")
    device: str = "auto"
    out: Path = Path("runs/rollout_agreement")
    """Scores of every variant, which are not sampled again."""

    def __post_init__(self):
        if unknown := set(self.ways) - set(WAYS):
            raise ValueError(f"there is no way {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")


def main(config: AgreementConfig) -> None:
    keep_freed_memory()
    device = find_device(config.device)
    model, critic = load_model(config.model, device=device), load_panel(read_recipe(config.recipe).reward, device)
    prompts = read_prompts(config.data)[: config.prompts]
    print(f"{config.model}, {len(prompts)} prompts, {config.steps} steps, guidance {config.guidance}")
    print(f"{describe_device(device)}, {torch.get_num_threads()} threads\n")
    full = sampled("full", model, critic, prompts, config)
    for n in config.candidates:
        print(f"\n{n} candidates | FLOPs | {' | '.join(real_costs())} | seconds | winner | loser | both | margin kept")
        print("--- | " * 8 + "---", flush=True)
        for way in config.ways:
            print(row(way, sampled(way, model, critic, prompts, config), full, n, max(config.candidates)), flush=True)


def sampled(way: str, model: VideoModel, critic: Panel, prompts: list[str], config: AgreementConfig) -> dict[str, Any]:
    """Scores and cost of one variant, from disk if it was sampled before."""
    size = f"{config.steps}-{config.guidance:g}-{len(prompts)}x{max(config.candidates)}"
    path = config.out / f"{config.model}-{Path(config.data).stem}-{size}-{way}.json"
    if path.exists():
        return json.loads(path.read_text())
    settings = RolloutConfig(steps=config.steps, guidance=config.guidance, batch=config.batch)
    settings, n = replace(settings, **WAYS[way]), max(config.candidates)
    found: dict[str, Any] = {"scores": []}
    model.encode_prompts(prompts), model.encode_negative(1)  # their cost is the same for all
    batch = prompts[: config.batch // n]
    found |= {"flops": counted(lambda: generate(model, batch, settings, n=n, decode=False)), "seconds": 0.0}
    with torch.no_grad():
        for start in range(0, len(prompts), config.batch // n):
            part = prompts[start : start + config.batch // n]
            began = clock(model)
            candidates = generate(model, part, settings, n=n)
            found["seconds"] += clock(model) - began
            found["scores"] += critic(candidates.videos, candidates.prompts, model.fps).values[:, 0].tolist()
    config.out.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write_text(json.dumps(found))
    return json.loads(path.read_text())


def counted(work: Callable[[], Any]) -> int:
    """FLOPs of some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def clock(model: VideoModel) -> float:
    if model.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def groups(scores: list[float], n: int, sampled: int) -> Tensor:
    """(prompts, n) of the first n candidates of each prompt, of which so many were sampled."""
    return torch.tensor(scores).view(-1, sampled)[:, :n]


def row(way: str, found: dict[str, Any], full: dict[str, Any], n: int, sampled: int) -> str:
    mine, true = groups(found["scores"], n, sampled), groups(full["scores"], n, sampled)
    best, worst = mine.argmax(1, True), mine.argmin(1, True)
    winner, loser = (best == true.argmax(1, True)).float(), (worst == true.argmin(1, True)).float()
    kept = (true.gather(1, best) - true.gather(1, worst)).mean() / (true.amax(1) - true.amin(1)).mean()
    cost = found["flops"] / full["flops"]
    return f"{way} | {cost:.2f} | {speed(cost, n)} | {found['seconds']:.0f} | {hits(winner, loser)} | {kept:.3f}"


def hits(winner: Tensor, loser: Tensor) -> str:
    low, high = interval(winner * loser)
    return f"{winner.mean():.2f} | {loser.mean():.2f} | {(winner * loser).mean():.2f} ({low:.2f}-{high:.2f})"


def speed(cost: float, candidates: int) -> str:
    """Pairs an hour, in multiples of those of 50 steps with guidance, at each real size."""
    gains = []
    for forward, decoder in real_costs().values():
        update = (
            10 * forward
        )  # of two clips: the policy's forward, that again, its backward (2); the reference's forward
        full, variant = (candidates * (100 * share * forward + decoder) + update for share in (1, cost))
        gains.append(f"{full / variant:.2f}")
    return " | ".join(gains)


@functools.cache
def real_costs() -> dict[str, tuple[int, int]]:
    """FLOPs of a denoiser's pass and of decoding a clip, at the sizes the models are made for."""
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


def interval(hits: Tensor, draws: int = 4000) -> tuple[float, float]:
    """The 95 % interval of a mean over prompts, by bootstrap."""
    hits, generator = hits.flatten(), torch.Generator().manual_seed(0)
    means = hits[torch.randint(len(hits), (draws, len(hits)), generator=generator)].mean(1)
    return means.quantile(0.025).item(), means.quantile(0.975).item()


if __name__ == "__main__":
    main(tyro.cli(AgreementConfig))
