"""Do cheaper rollouts name the same winner and loser as full ones, and what do they save?

Every way of shooting gets the same prompts and the same noise as the full one, and the same critic judges all. Printed
for each, as Markdown: denoiser FLOPs relative to the full way (counted on the first batch); how many times the pairs an
hour that makes at real sizes, by FLOPs (sampling, decoding, and a DPO update with gradient checkpointing; the critic is
left out); seconds here (of the processor's time on a CPU, by the clock on a GPU); how often the winner, the loser and
both are those of the full way, with a 95 % interval (bootstrap over prompts); and how much of the margin between the
full way's best and worst take the chosen pair has by the full way's scores.

    python benchmarks/rollout_agreement.py                                # two hours on one core; again goes on
    python benchmarks/rollout_agreement.py --model tiny-wan --prompts 24 --takes 4 --ways full asked-14
    python benchmarks/rollout_agreement.py --steps 8 --guidance 1 --ways full asked-6 asked-5
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import tyro
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan, CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from besttake.algorithms.pairing import extremes
from besttake.commands.cli import read_recipe
from besttake.data.files import atomic
from besttake.data.prompts import read_prompts
from besttake.models import VideoModel, load_model
from besttake.rewards.panel import Panel, PanelScores, load_panel
from besttake.runtime.devices import describe_device, find_device, keep_freed_memory
from besttake.sampling import rollout
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.sampling.step_cache import CacheConfig

WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "asked-20": {"asked": 20},
    "asked-16": {"asked": 16},
    "asked-14": {"asked": 14},
    "asked-12": {"asked": 12},
    "asked-6": {"asked": 6},
    "asked-5": {"asked": 5},
    "steps-14": {"steps": 14},
    "asked-14-guided-early": {"asked": 14, "guided": (0.3, 1.0)},
    "asked-20-guided-early": {"asked": 20, "guided": (0.5, 1.0)},
    "decoded-2": {"decoded": 2},
    "decoded-4": {"decoded": 4},
    "first-block": {"cache": CacheConfig("first-block", threshold=0.1)},
    "first-block-bold": {"cache": CacheConfig("first-block", threshold=0.3)},
    "taylorseer": {"cache": CacheConfig("taylorseer", every=4)},
    "taylorseer-5": {"cache": CacheConfig("taylorseer", every=5)},
    "pyramid": {"cache": CacheConfig("pyramid", every=2)},
}
PREVIEWS = (0.3, 0.5, 0.7)
"""Shares of the full way's steps after which takes might be dropped, by what a critic says of the x_0 foreseen then."""


@dataclass(frozen=True)
class AgreementConfig:
    """Compare ways to shoot with the full way."""

    model: str = "tiny-cogvideox"
    recipe: str = "onlinevpo-tiny"
    """Whose critic judges."""
    data: str = "world-test"
    """Settings were chosen on world-validation."""
    prompts: int = 64
    candidates: tuple[int, ...] = (4, 8)
    """Sizes of the groups; the largest is shot."""
    steps: int = 50
    guidance: float = 2.0
    batch: int = 32
    ways: tuple[str, ...] = ("full", "asked-16", "asked-14", "steps-14")
    device: str = "auto"
    out: Path = Path("runs/rollout_agreement")
    """Scores of every way that was shot, which are not shot again."""

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
    full = shot("full", model, critic, prompts, config)
    for takes in config.candidates:
        print(f"\n{takes} takes | FLOPs | {' | '.join(real_costs())} | seconds | winner | loser | both | margin kept")
        print("--- | " * 8 + "---", flush=True)
        for way in config.ways:
            print(row(way, shot(way, model, critic, prompts, config), full, takes, max(config.candidates)), flush=True)
        for share, previews in full["previews"].items():
            for kept in sorted({max(2, takes // 2), takes * 3 // 4}):
                print(dropped(float(share), previews, kept, full["scores"], takes, max(config.candidates)), flush=True)


def shot(way: str, model: VideoModel, critic: Panel, prompts: list[str], config: AgreementConfig) -> dict[str, Any]:
    """Scores, cost and previews' scores of one way, from disk if it was shot before."""
    size = f"{config.steps}-{config.guidance:g}-{len(prompts)}x{max(config.candidates)}"
    path = config.out / f"{config.model}-{Path(config.data).stem}-{size}-{way}.json"
    if path.exists():
        return json.loads(path.read_text())
    settings = RolloutConfig(steps=config.steps, guidance=config.guidance, batch=config.batch)
    settings, n = replace(settings, **WAYS[way]), max(config.candidates)
    wanted = [round(share * config.steps) for share in PREVIEWS] if way == "full" else []
    found: dict[str, Any] = {"scores": [], "previews": {share: [] for share in PREVIEWS if wanted}}
    model.encode_prompts(prompts), model.encode_negative(1)  # their cost is the same for all
    batch = prompts[: config.batch // n]
    found |= {"flops": counted(lambda: generate(model, batch, settings, n=n, decode=False)), "seconds": 0.0}
    with torch.no_grad():
        for start in range(0, len(prompts), config.batch // n):
            part = prompts[start : start + config.batch // n]
            began = clock(model)
            with patch.object(rollout, "guided", watched := Watched(model, wanted)):
                takes = generate(model, part, settings, n=n)
            found["seconds"] += clock(model) - began
            found["scores"] += critic(takes.videos, takes.prompts, model.fps).values[:, 0].tolist()
            for share, x_0 in zip(found["previews"], watched.predicted_x0, strict=True):
                videos = model.decode(x_0).float().clamp(-1, 1)
                found["previews"][share] += critic(videos, takes.prompts, model.fps).values[:, 0].tolist()
    config.out.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write_text(json.dumps(found))
    return json.loads(path.read_text())


class Watched:
    """`guided`, and the x_0 that it foresees at some of the times it is asked."""

    def __init__(self, model: VideoModel, wanted: list[int]):
        self.schedule, self.wanted, self.evaluations, self.predicted_x0 = model.schedule, wanted, 0, []
        self.guided: Callable[..., Tensor] = rollout.guidance_interval

    def __call__(self, ask: Any, x_t: Tensor, t: Tensor, told: Any) -> Tensor:
        prediction = self.guided(ask, x_t, t, told)
        if self.evaluations in self.wanted:
            self.predicted_x0.append(self.schedule.split(prediction, x_t, t)[0])
        self.evaluations += 1
        return prediction


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


def groups(scores: list[float], takes: int, shot: int) -> Tensor:
    """(prompts, takes) of the first takes of each prompt, of which so many were shot."""
    return torch.tensor(scores).view(-1, shot)[:, :takes]


def row(way: str, found: dict[str, Any], full: dict[str, Any], takes: int, shot: int) -> str:
    mine, true = groups(found["scores"], takes, shot), groups(full["scores"], takes, shot)
    best, worst = mine.argmax(1, True), mine.argmin(1, True)
    winner, loser = (best == true.argmax(1, True)).float(), (worst == true.argmin(1, True)).float()
    kept = (true.gather(1, best) - true.gather(1, worst)).mean() / (true.amax(1) - true.amin(1)).mean()
    cost = found["flops"] / full["flops"]
    return f"{way} | {cost:.2f} | {speed(cost, takes)} | {found['seconds']:.0f} | {hits(winner, loser)} | {kept:.3f}"


def dropped(share: float, previews: list[float], kept: int, scores: list[float], takes: int, shot: int) -> str:
    """What OnlineVPO's previews (`preview_at`, `preview_keeps`) make of the full way's takes."""
    seen, true = groups(previews, takes, shot), groups(scores, takes, shot)
    on = torch.zeros_like(true, dtype=torch.bool).scatter(
        1, extremes(PanelScores.of(seen.flatten()), takes, kept), True
    )
    winner, loser = (on.gather(1, place).float() for place in (true.argmax(1, True), true.argmin(1, True)))
    best, worst = torch.where(on, true, -torch.inf).amax(1), torch.where(on, true, torch.inf).amin(1)
    margin = (best - worst).mean() / (true.amax(1) - true.amin(1)).mean()
    cost = share + (1 - share) * kept / takes
    gain = speed(cost, takes, decoded=1 + kept / takes)
    return f"{kept} kept after {share:.0%} | {cost:.2f} | {gain} | | {hits(winner, loser)} | {margin:.3f}"


def hits(winner: Tensor, loser: Tensor) -> str:
    low, high = interval(winner * loser)
    return f"{winner.mean():.2f} | {loser.mean():.2f} | {(winner * loser).mean():.2f} ({low:.2f}-{high:.2f})"


def speed(cost: float, takes: int, decoded: float = 1.0) -> str:
    """Pairs an hour, in multiples of those of 50 guided steps, at each real size.

    Args:
        decoded: clips decoded a take.
    """
    gains = []
    for forward, decoder in real_costs().values():
        update = (
            10 * forward
        )  # of two clips: the policy's forward, that again, its backward (2); the reference's forward
        plain, way = (takes * (100 * share * forward + n * decoder) + update for share, n in ((1, 1), (cost, decoded)))
        gains.append(f"{plain / way:.2f}")
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
