"""Speed of an OnlineVPO step of besttake against a plain implementation with the same model and sizes.

The plain step samples candidates one at a time with the diffusers pipeline (encoding the text each time), scores one
clip at a time, and uses four separate forward passes in the loss (policy and reference, winner and loser).

    python benchmarks/step_time.py --model tiny-cogvideox --repeats 3
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

from besttake.algorithms.errors import denoising_errors
from besttake.algorithms.losses import dpo
from besttake.algorithms.pairing import best_against_worst
from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig
from besttake.plan.measured import flop_counter
from besttake.rewards.panel import RewardConfig, load_panel
from besttake.runtime.devices import keep_freed_memory
from besttake.sampling.rollout import RolloutConfig, generate


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time one training step, ours and plain."""

    model: str = "tiny-cogvideox"
    prompts_per_step: int = 4
    candidates: int = 4
    repeats: int = 5
    warmup: int = 1
    threads: int = 0
    """CPU threads; 0 = torch's default."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    out: Path | None = None
    """Where to write the figures, a .json."""


class Stopwatch:
    """Seconds by part, summed over steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str):
        began = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def our_step(
    policy: Policy, critic: Callable, prompts: list[str], config: BenchmarkConfig, step: int, stopwatch: Stopwatch
):
    model = policy.model
    with stopwatch.part("sampling"):
        candidates = generate(policy, prompts, config.rollout, n=config.candidates, seed=(0, step), decode=False)
    with stopwatch.part("decoding"), torch.no_grad():
        videos = torch.cat([model.decode(part) for part in candidates.latents.split(config.rollout.batch)]).clamp(-1, 1)
    with stopwatch.part("scoring"), torch.no_grad():
        scores = critic(videos, candidates.prompts, model.fps).values[:, 0]
    with stopwatch.part("loss"):
        pairs, _ = best_against_worst(candidates, scores)
        generator = torch.Generator().manual_seed(step)
        t = model.schedule.sample_times(len(pairs), generator).to(model.device)
        noise = torch.randn(pairs.clips[:, 0].shape, generator=generator).to(model.device)
        loss, _ = dpo(denoising_errors(policy, pairs.clips, pairs.condition, t, noise), 500.0)
        loss.mean().backward()


def plain_step(
    policy: Policy, critic: Callable, prompts: list[str], config: BenchmarkConfig, step: int, stopwatch: Stopwatch
):
    model, rollout = policy.model, config.rollout
    frames, height, width = rollout.size(model)
    for i, prompt in enumerate(prompts):
        candidates, scores = [], []
        for k in range(config.candidates):
            with stopwatch.part("sampling"):
                latents = model.pipeline(
                    prompt,
                    height=height,
                    width=width,
                    num_frames=frames,
                    num_inference_steps=rollout.steps or model.default_steps,
                    guidance_scale=rollout.scale(model),
                    max_sequence_length=model.longest_prompt(),
                    generator=torch.Generator().manual_seed(1000 * step + 10 * i + k),
                    output_type="latent",
                ).frames
            latents = latents.transpose(1, 2) if latents.shape[2] == model.denoiser.config.in_channels else latents
            with stopwatch.part("decoding"), torch.no_grad():
                video = model.decode(latents).clamp(-1, 1)
            with stopwatch.part("scoring"), torch.no_grad():
                scores.append(critic(video, [prompt], model.fps).values.item())
            candidates.append(latents)
        with stopwatch.part("loss"):
            _plain_loss(policy, candidates, scores, prompt, step).backward()


def _plain_loss(policy: Policy, candidates: list, scores: list[float], prompt: str, step: int):
    model, generator = policy.model, torch.Generator().manual_seed(step)
    t = model.schedule.sample_times(1, generator).to(model.device)
    noise = torch.randn(candidates[0].shape, generator=generator).to(model.device)
    condition = model.encode_prompts([prompt])
    errors = []
    for row in (max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)):
        x_t, target = (
            model.schedule.add_noise(candidates[row], noise, t),
            model.schedule.target(candidates[row], noise, t),
        )
        mine = (policy.predict(x_t, t, condition) - target).square().mean()
        errors.append(mine - (policy.reference.predict(x_t, t, condition) - target).square().mean())
    return -F.logsigmoid(-250.0 * (errors[0] - errors[1]))


def matrix_floor(policy: Policy, prompts: list[str], config: BenchmarkConfig) -> dict[str, float]:
    """Seconds the matrix products of one step would take at the rate this machine reaches on large ones.

    Products are counted on a real sampling forward and a real loss, by torch's own counter.
    """
    a, b = (torch.randn(1024, 1024, device=policy.model.device) for _ in range(2))
    for _ in range(3):
        a @ b
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    rate = 10 * 2 * 1024**3 / (time.perf_counter() - began)
    counter = flop_counter()
    with counter:
        our_step(policy, lambda videos, _: videos.flatten(1).mean(1), prompts, config, 0, Stopwatch())
    return {"flops": counter.get_total_flops(), "rate": rate, "seconds": counter.get_total_flops() / rate}


def main(config: BenchmarkConfig) -> None:
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    model = load_model(config.model, device="cuda" if torch.cuda.is_available() else "cpu")
    policy, critic = Policy(model, PolicyConfig()), load_panel(config.reward, str(model.device))
    prompts = read_prompts("world-train")[: config.prompts_per_step]
    figures: dict = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    for name, step in (("ours", our_step), ("plain", plain_step)):
        for k in range(config.warmup):
            step(policy, critic, prompts, config, k, Stopwatch())
        totals, stopwatch = [], Stopwatch()
        for k in range(config.repeats):
            began = time.perf_counter()
            step(policy, critic, prompts, config, k, stopwatch)
            totals.append(time.perf_counter() - began)
        figures[name] = {"median": sorted(totals)[len(totals) // 2], "fastest": min(totals)}
        figures[name] |= {part: seconds / config.repeats for part, seconds in stopwatch.seconds.items()}
        print(name, {key: round(value, 3) for key, value in figures[name].items()})
    figures["speed_up"] = figures["plain"]["median"] / figures["ours"]["median"]
    figures["floor"] = matrix_floor(policy, prompts, config)
    print(f"speed-up {figures['speed_up']:.2f} x; a step's matrix products alone: {figures['floor']['seconds']:.3f} s")
    if config.out:
        config.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
