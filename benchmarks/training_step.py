"""Speed of sampling and of a DPO step relative to the hardware and to other implementations.

One model at its real size with random weights and random text embeddings (which do not affect times), LoRA, bfloat16:

- the rate of large matrix products, to which all other rates are relative;
- a step of sampling, ours and by the family's own pipeline (diffusers', but for Open-Sora) as its users call it;
- the DPO step on a pair, ours and as public scripts write it: a second model for the reference, four forwards, and the
  activations of both clips held until the backward pass;
- decoding a clip; from all of these, pairs an hour, without the critic.

    python benchmarks/training_step.py                              # CogVideoX-2B and -5B, Wan 1.3B; needs a GPU
    python benchmarks/training_step.py --models tiny-cogvideox --dtype float32 --checkpointing none --micro-batch-size 0
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from gpu_report import speed
from random_models import PROMPT, random_model
from timing import Rows, figures, free, seconds, tried
from torch import Tensor

from besttake.algorithms.errors import sampled_errors
from besttake.algorithms.losses import dpo
from besttake.models import VideoModel
from besttake.models.compiled import compile_blocks
from besttake.models.families.opensora import OpenSora
from besttake.models.lora import compute_as_peft, compute_in_base_dtype
from besttake.models.policy import Policy, PolicyConfig
from besttake.runtime.devices import describe_device, find_device, keep_freed_memory
from besttake.sampling.rollout import RolloutConfig, generate


@dataclass(frozen=True)
class SpeedConfig:
    """Time sampling and training."""

    models: tuple[str, ...] = ("THUDM/CogVideoX-2b", "THUDM/CogVideoX-5b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    candidates: int = 4
    batch: int = 4
    """Clips that are sampled at once."""
    steps: int = 3
    """Sampling steps that are timed: each costs the same."""
    micro_batch_size: int = 1
    checkpointing: Literal["full", "selective", "none"] = "full"
    compile: bool = False
    """Time ours with compiled blocks too."""
    rank: int = 64
    repeats: int = 3
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = "auto"


def main(config: SpeedConfig) -> None:
    keep_freed_memory()
    device, found = find_device(config.device), dict[str, Any]()
    found["rates"] = {config.dtype: matrix_rate(device, getattr(torch, config.dtype)) / 1e12}
    print(f"{describe_device(device)}: {config.dtype} matrix products at {found['rates'][config.dtype]:.2f} TFLOP/s")
    for source in config.models:
        found[f"speed-{source}"] = rows = Rows()
        measure(source, config, rows)
        print(f"\n{speed({name: found[name] for name in ('rates', f'speed-{source}')})}", flush=True)
        free()


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of products of large square matrices."""
    side = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, 10)


def measure(source: str, config: SpeedConfig, rows: Rows) -> None:
    """One model's figures; those of sampling are of one step of one clip."""
    device = find_device(config.device)
    model = random_model(source, getattr(torch, config.dtype), device)
    size, rollout = model.default_size(), RolloutConfig(steps=config.steps, batch=config.batch)
    rows["setting"] = {
        "clip": " x ".join(map(str, size)),
        "steps": model.default_steps,
        "passes of a step": 2 if rollout.scale(model) != 1 and not model.embeds_guidance else 1,
        "clips at once": config.batch,
        "dtype": config.dtype,
    }
    latents = torch.randn(1, *model.latent_shape(*size), device=device)
    with model.using("vae"):  # the pipeline's device is that of its first part
        rows["sampling, pipeline"] = tried(lambda: official(model, config.steps), config.repeats, True, config.steps)
    policy = Policy(
        model,
        PolicyConfig(
            rank=config.rank, gradient_checkpointing=config.checkpointing, micro_batch_size=config.micro_batch_size
        ),
    )
    clip_steps = config.steps * config.batch
    rows["sampling"] = tried(lambda: sample(policy, rollout, config.batch), config.repeats, True, clip_steps)
    rows["DPO step"] = tried(lambda: our_step(policy, latents), config.repeats, True)
    if config.micro_batch_size == 1:
        policy.micro_batch_size = 0
        rows["DPO step, both clips at once"] = tried(lambda: our_step(policy, latents), config.repeats, True)
        policy.micro_batch_size = 1
    if config.checkpointing == "full":
        policy.set_gradient_checkpointing("selective")
        rows["DPO step, attention kept"] = tried(lambda: our_step(policy, latents), config.repeats, True)
        policy.set_gradient_checkpointing("full")
    with public_way(model):
        try:
            reference = copy.deepcopy(model.denoiser).requires_grad_(False)
            rows["DPO step, public"] = figures(lambda: public_step(policy, reference, latents), config.repeats, True)
        except torch.OutOfMemoryError:
            rows["DPO step, public"] = {"failed": "out of memory"}
    reference = None
    with torch.no_grad(), model.using("vae"):
        rows["decoding"] = tried(lambda: model.decode(latents, size[0]), config.repeats, True)
    if all("seconds" in rows[name] for name in ("sampling", "decoding", "DPO step")):
        candidate = rows["sampling"]["seconds"] * model.default_steps + rows["decoding"]["seconds"]
        rows["pairs an hour"] = round(3600 / (config.candidates * candidate + rows["DPO step"]["seconds"]), 1)
    if config.compile:
        for denoiser in model.denoisers.values():
            compile_blocks(denoiser)
        rows["sampling, compiled"] = tried(
            lambda: sample(policy, rollout, config.batch), config.repeats, per=clip_steps
        ) | {"tflop": rows["sampling"].get("tflop", 0)}
        rows["DPO step, compiled"] = tried(lambda: our_step(policy, latents), config.repeats) | {
            "tflop": rows["DPO step"].get("tflop", 0)
        }
        policy.set_gradient_checkpointing("selective")
        policy.micro_batch_size = 0
        rows["DPO step, both clips at once, attention kept, compiled"] = tried(
            lambda: our_step(policy, latents), config.repeats
        )


def sample(policy: Policy, rollout: RolloutConfig, candidates: int) -> None:
    generate(policy, [PROMPT], rollout, n=candidates, decode=False)


def official(model: VideoModel, steps: int) -> None:
    """The family's own pipeline, as its users call it."""
    frames, height, width = model.default_size()
    settings: dict[str, Any] = {"height": height, "width": width, "num_frames": frames, "output_type": "latent"}
    settings |= {"num_inference_steps": steps, "guidance_scale": model.default_guidance}
    if isinstance(model, OpenSora):
        model.pipeline(PROMPT, **settings)
        return
    given, negative = (model.embed([text])["text"] for text in (PROMPT, ""))
    model.pipeline(prompt_embeds=given, negative_prompt_embeds=negative, **settings)


def our_step(policy: Policy, latents: Tensor) -> None:
    clips = torch.stack([latents, latents.flip(-1)], 1)
    errors = sampled_errors(policy, clips, policy.model.encode_prompts([PROMPT]), torch.Generator())
    dpo(errors, 500.0)[0].mean().backward()
    for weight in policy.trainable.values():
        weight.grad = None


@contextmanager
def public_way(model: VideoModel) -> Iterator[None]:
    """Context in which the LoRA computes as PEFT has it."""
    compute_as_peft(model.denoiser)
    try:
        yield
    finally:
        if model.pipeline.transformer.dtype != torch.float32:
            compute_in_base_dtype(model.denoiser)


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
