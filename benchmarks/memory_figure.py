"""The paper's memory figure: a DPO step against a reward gradient through the autoencoder (ReFL), by clip size.

Both train Open-Sora 1.2, the paper's model, in bfloat16 with gradient checkpointing and AdamW. The DPO step is ours: a
winner and a loser, by the split backward. ReFL's is one denoising step with gradient to x_0, which is decoded; the
reward is the mean of the pixels, so that a critic's own memory would come on top.

    python benchmarks/memory_figure.py                  # counted on a fake device: no GPU, no weights
    python benchmarks/memory_figure.py --device cuda    # measured, with random weights
    python benchmarks/memory_figure.py --model THUDM/CogVideoX-5b --methods dpo --train lora --sizes 480x720 --frames 49
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro
from random_models import PROMPT, without_text_encoder
from torch import nn

from besttake.algorithms.errors import sampled_errors
from besttake.algorithms.losses import dpo
from besttake.models import Quantization, Size
from besttake.models.policy import Policy, PolicyConfig
from besttake.plan.block_cache import reuse_equal_blocks
from besttake.plan.cards import find_card
from besttake.plan.fake_device import CARD, fake_device
from besttake.plan.measured import randomise
from besttake.plan.meter import Meter, Throughput
from besttake.plan.skeletons import skeleton
from besttake.runtime.devices import describe_device
from besttake.training.config import OptimConfig, adamw
from besttake.types import Condition

SIZES = {"240p": (240, 424), "360p": (360, 640), "480p": (480, 848), "720p": (720, 1280)}


@dataclass(frozen=True)
class FigureConfig:
    """Peak memory of a training step, in GiB."""

    model: str = "hpcai-tech/OpenSora-STDiT-v3"
    methods: tuple[str, ...] = ("dpo", "refl")
    train: tuple[str, ...] = ("full", "lora")
    sizes: tuple[str, ...] = tuple(SIZES)
    """Their names, or height x width."""
    frames: tuple[int, ...] = (17, 34, 51, 68, 136)
    """The paper's, and twice its longest."""
    quantize: Quantization = "none"
    use_8bit_adam: bool = False
    device: str = "fake"
    """Or "cuda"."""


def main(config: FigureConfig) -> None:
    """Print a table for each method and kind of training: a row for each size, a column for each number of frames."""
    counted = config.device == "fake"
    print("counted, not measured" if counted else f"measured on {describe_device(config.device)}")
    for method in config.methods:
        for train in config.train:
            print(f"\n{method}, {train} | " + " | ".join(f"{frames} frames" for frames in config.frames))
            print(" | ".join(["---"] * (1 + len(config.frames))))
            for size in config.sizes:
                height, width = SIZES.get(size) or map(int, size.split("x"))
                peaks = (peak(config, method, train, (frames, height, width)) for frames in config.frames)
                print(f"{size} | " + " | ".join(f"{gib:.1f}" for gib in peaks), flush=True)


def peak(config: FigureConfig, method: str, train: Any, size: Size) -> float:
    """GiB at the fullest moment of the second step, when the optimizer has its moments; infinite if they do not fit."""
    counted = config.device == "fake"
    device = CARD if counted else torch.device(config.device)
    meter = Meter(CARD, Throughput(find_card("H200"), 0.5))
    with fake_device() if counted else nullcontext(), meter if counted else nullcontext():
        ready = partial(claim_weights, meter) if counted else randomise
        model = without_text_encoder(skeleton(config.model, torch.bfloat16, ready, config.quantize, device=device))
        how = PolicyConfig(train=train, rank=64, gradient_checkpointing="full", micro_batch_size=1)
        try:
            policy = Policy(model, how)
            if counted:
                reuse_equal_blocks(meter, model.pipeline.transformer)(how.gradient_checkpointing)
            optimizer = adamw(OptimConfig(use_8bit_adam=config.use_8bit_adam), policy.trainable.values())
            for _ in range(2):
                condition = model.encode_prompts([PROMPT])
                if not counted:
                    torch.cuda.reset_peak_memory_stats(device)
                with meter.phase("step"):
                    METHODS[method](policy, size, condition)
                    optimizer.step()
                    optimizer.zero_grad()
        except torch.OutOfMemoryError:
            return float("inf")
    most = meter.phases["step"].peak if counted else torch.cuda.max_memory_allocated(device)
    del policy, optimizer, model
    gc.collect()
    if not counted:
        torch.cuda.empty_cache()
    return most / 2**30


def claim_weights(meter: Meter, name: str, part: nn.Module) -> None:
    """The meter sees a part's weights, those in fewer bits too."""
    meter.claim(name, [*part.parameters(), *part.buffers()])


def dpo_step(policy: Policy, size: Size, condition: Condition) -> None:
    rows = torch.randn(1, 2, *policy.model.latent_shape(*size), device=policy.model.device)
    dpo(sampled_errors(policy, rows, condition, torch.Generator()), 500.0)[0].mean().backward()


def refl_step(policy: Policy, size: Size, condition: Condition) -> None:
    model = policy.model
    x_t = torch.randn(1, *model.latent_shape(*size), device=model.device)
    t = torch.full((1,), 0.2, device=model.device)
    x_0, _ = model.schedule.split(policy.predict(x_t, t, condition).float(), x_t, t)
    with model.using("vae"):
        model.decode(x_0, size[0]).float().mean().neg().backward()


METHODS: dict[str, Callable[[Policy, Size, Condition], None]] = {"dpo": dpo_step, "refl": refl_step}

if __name__ == "__main__":
    main(tyro.cli(FigureConfig))
