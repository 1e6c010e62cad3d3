"""Speed of sampling and of a DPO step relative to the hardware and to other implementations: pairs per hour on one GPU.

One model at its real size with random weights (which do not affect times), LoRA, bfloat16. In one run:

- the rate of large bfloat16 matrix products, to which all other rates are relative;
- a few steps of sampling, ours and by diffusers' own pipeline at the same size;
- the DPO step on a pair, ours and as public scripts write it: a second model for the reference, four forwards, and the
  activations of both clips held until the backward pass;
- decoding a video; from all of these, pairs per hour.

    python benchmarks/training_step.py                              # CogVideoX-2B and -5B, Wan 1.3B; needs a GPU
    python benchmarks/training_step.py --models tiny-cogvideox --dtype float32 --no-checkpointing --micro-batch-size 0
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from besttake.algorithms.errors import sampled_errors
from besttake.algorithms.losses import dpo
from besttake.models import VideoModel, load_model
from besttake.models.lora import compute_as_peft
from besttake.models.policy import Policy, PolicyConfig
from besttake.plan.measured import flop_counter, randomise
from besttake.plan.skeletons import skeleton
from besttake.runtime.devices import describe_device, find_device, keep_freed_memory
from besttake.runtime.embedded import embedded_model
from besttake.sampling.rollout import RolloutConfig, generate

PROMPT = "a woman opens a red umbrella in the rain and walks on"
FEW = 3
"""Sampling steps that are timed: each costs the same."""


@dataclass(frozen=True)
class SpeedConfig:
    """Time sampling and training."""

    models: tuple[str, ...] = ("THUDM/CogVideoX-2b", "THUDM/CogVideoX-5b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    candidates: int = 4
    batch: int = 4
    """Batch size of sampling."""
    micro_batch_size: int = 1
    checkpointing: bool = True
    compile: bool = False
    rank: int = 64
    repeats: int = 3
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = "auto"


@dataclass(frozen=True)
class Timed:
    """Seconds (the fastest), FLOPs of the model without what is computed twice, and GiB at the fullest moment."""

    seconds: float
    flops: float
    memory: float = 0.0

    def describe(self, rate: float) -> str:
        share, memory = self.flops / self.seconds / rate, f", {self.memory:.1f} GiB" if self.memory else ""
        return f"{self.seconds:.3f} s, {self.flops / 1e12:.3f} TFLOP, {share:.0%} of the rate{memory}"


def main(config: SpeedConfig) -> None:
    keep_freed_memory()
    device = find_device(config.device)
    rate = matrix_rate(device, getattr(torch, config.dtype))
    print(f"{describe_device(device)}, {config.dtype}: matrix products at {rate / 1e12:.2f} TFLOP/s")
    for source in config.models:
        print(f"\n## {source}")
        measure(source, config, device, rate)
        gc.collect()


def measure(source: str, config: SpeedConfig, device: str, rate: float) -> None:
    """Print the figures of one model."""
    model = random_model(source, getattr(torch, config.dtype), device)
    size, steps = model.default_size(), model.default_steps
    rollout = RolloutConfig(steps=FEW, batch=config.batch, compile=config.compile)
    passes = FEW * (2 if rollout.scale(model) != 1 and not model.embeds_guidance else 1)
    pipeline_time = timed(lambda: official(model, FEW), config.repeats, device)
    policy = Policy(
        model,
        PolicyConfig(
            rank=config.rank, gradient_checkpointing=config.checkpointing, micro_batch_size=config.micro_batch_size
        ),
    )
    our_time = timed(lambda: sample(policy, rollout, config.batch), config.repeats, device)
    latents = torch.randn(1, *model.latent_shape(*size), device=device)
    decode = timed(lambda: model.decode(latents, size[0]), config.repeats, device)
    step = timed(lambda: our_step(policy, latents), config.repeats, device)
    print(f"{' x '.join(map(str, size))}, {steps} steps, {passes // FEW} passes each, {config.candidates} candidates")
    print(f"sampling, {FEW} steps of {config.batch} videos: {our_time.describe(rate)}")
    faster = pipeline_time.seconds / our_time.seconds * config.batch
    print(f"one video by diffusers' pipeline: {pipeline_time.describe(rate)}; ours is {faster:.2f} x as fast per video")
    print(f"decoding a video: {decode.describe(rate)}")
    print(f"a DPO step on a pair: {step.describe(rate)}")
    compute_as_peft(model.denoiser)
    try:
        reference = copy.deepcopy(model.denoiser).requires_grad_(False)
        plain = timed(lambda: public_step(policy, reference, latents), config.repeats, device)
        faster = plain.seconds / step.seconds
        print(f"the same as public scripts write it: {plain.describe(rate)}; ours is {faster:.2f} x as fast")
    except torch.OutOfMemoryError:
        print("the same as public scripts write it: not enough memory")
    seconds_per_candidate = our_time.seconds / config.batch / FEW * steps + decode.seconds
    pairs = 3600 / (config.candidates * seconds_per_candidate + step.seconds)
    print(f"pairs per hour: {pairs:.1f} (a candidate {seconds_per_candidate:.1f} s; the critic is not counted)")


def random_model(source: str, dtype: torch.dtype, device: str) -> VideoModel:
    """An embedded model, or one at its real size with random weights, made from its configurations."""
    if embedded_model(source) != source:
        return load_model(source, dtype, device)

    return skeleton(source, dtype, randomise, device=torch.device(device))


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of products of large square matrices."""
    side = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b, 10, device).seconds


def timed(work: Callable[[], Any], repeats: int, device: str) -> Timed:
    """The fastest of so many runs, after one to warm up, whose operations are counted."""
    gpu = device.startswith("cuda")
    with flop_counter() as counter:
        work()
    fastest = float("inf")
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0
    return Timed(fastest, counter.get_total_flops(), memory)


def sample(policy: Policy, rollout: RolloutConfig, candidates: int) -> None:
    generate(policy, [PROMPT], rollout, n=candidates, decode=False)


def official(model: VideoModel, steps: int) -> None:
    """diffusers' own pipeline, as its users call it."""
    frames, height, width = model.default_size()
    with model.using(*model.text_parts, "vae"):
        model.pipeline(
            PROMPT,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=model.default_guidance,
            max_sequence_length=model.longest_prompt(),
            output_type="latent",
        )


def our_step(policy: Policy, latents: Tensor) -> None:
    clips = torch.stack([latents, latents.flip(-1)], 1)
    errors = sampled_errors(policy, clips, policy.model.encode_prompts([PROMPT]), torch.Generator())
    dpo(errors, 500.0)[0].mean().backward()
    for weight in policy.trainable.values():
        weight.grad = None


def public_step(policy: Policy, reference: Any, latents: Tensor) -> None:
    """Diffusion-DPO as the public scripts write it: four forwards, both clips' activations held until the backward."""
    model = policy.model
    condition, t = model.encode_prompts([PROMPT]), torch.full((1,), 0.5, device=model.device)
    noise, gains = torch.randn_like(latents), []
    for clip in (latents, latents.flip(-1)):
        x_t, target = model.schedule.add_noise(clip, noise, t), model.schedule.target(clip, noise, t)
        policy_error = (policy.predict(x_t, t, condition).float() - target).square().mean()
        with torch.no_grad():
            reference_error = (model.predict(reference, x_t, t, condition).float() - target).square().mean()
        gains.append(policy_error - reference_error)
    (-F.logsigmoid(-250.0 * (gains[0] - gains[1]))).backward()
    for weight in policy.trainable.values():
        weight.grad = None


if __name__ == "__main__":
    main(tyro.cli(SpeedConfig))
