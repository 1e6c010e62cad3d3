"""Quantized base models: errors of predictions, memory, and effect on LoRA's gradients.

    python benchmarks/quantization.py                      # tiny-cogvideox; half a minute
    python benchmarks/quantization.py --model FOLDER       # any model, on a GPU if there is one

Compared with the same model in bfloat16, on its own noised samples: relative error of a prediction, cosine of the
gradients of a perturbed LoRA, size of the blocks' weights, and seconds of a forward and backward pass. For comparison,
the same for bfloat16 against float32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor

from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig
from besttake.models.quantization import blocks, plain_tensors
from besttake.runtime.devices import describe_device, find_device
from besttake.sampling.rollout import RolloutConfig, generate

WAYS = {"bfloat16": "none", "int8": "int8", "fp8": "fp8", "nf4": "nf4"}


@dataclass(frozen=True)
class QuantizationConfig:
    """Compare weights in fewer bits."""

    model: str = "tiny-cogvideox"
    prompts: str = "world-validation"
    count: int = 16
    device: str = "auto"


def main(config: QuantizationConfig) -> None:
    device = find_device(config.device)
    prompts = read_prompts(config.prompts)[: config.count]
    model = load_model(config.model, device=device)
    clips = generate(model, prompts, RolloutConfig(steps=8, guidance=1.0), decode=False).latents
    exact = measure(Policy(model, PolicyConfig(rank=8)), prompts, clips)
    print(f"{config.model} on {describe_device(device)}, {torch.get_num_threads()} threads\n")
    print(
        "weights | against | error of a prediction | cosine of gradients | MB of the blocks | seconds\n"
        + "--- | " * 5
        + "---"
    )
    before, name = exact, "float32"
    for way, bits in WAYS.items():
        policy = Policy(load_model(config.model, torch.bfloat16, device, bits), PolicyConfig(rank=8))
        found = measure(policy, prompts, clips)
        error = (found["prediction"] - before["prediction"]).norm() / before["prediction"].norm()
        cosine = torch.cosine_similarity(found["gradient"], before["gradient"], 0)
        print(f"{way} | {name} | {error:.4f} | {cosine:.4f} | {megabytes(policy):.2f} | {found['seconds']:.2f}")
        if way == "bfloat16":
            before, name = found, way


def measure(policy: Policy, prompts: list[str], clips: Tensor) -> dict[str, Any]:
    """Predictions on noised clips, the gradient of a perturbed LoRA, and the seconds of both."""
    generator, model = torch.Generator().manual_seed(0), policy.model
    with torch.no_grad():
        for weight in policy.trainable.values():
            weight += 0.02 * torch.randn(weight.shape, generator=generator).to(weight)
    noise = torch.randn(clips.shape, generator=generator).to(clips)
    t = model.schedule.sample_times(len(clips), generator).to(clips.device)
    x_t, condition = model.schedule.add_noise(clips, noise, t), model.encode_prompts(prompts)
    began = time.perf_counter()
    prediction = policy.predict(x_t, t, condition).float()
    (prediction - model.schedule.target(clips, noise, t)).square().mean().backward()
    gradient = torch.cat([weight.grad.flatten() for weight in policy.trainable.values() if weight.grad is not None])
    return {"prediction": prediction.detach(), "gradient": gradient, "seconds": time.perf_counter() - began}


def megabytes(policy: Policy) -> float:
    """Of the blocks' weights, LoRA's left out."""
    weights = [
        weight
        for part in policy.model.denoisers.values()
        for block in blocks(part)
        for name, weight in block.named_parameters()
        if "lora" not in name
    ]
    return sum(part.nbytes for weight in weights for part in plain_tensors(weight)) / 1e6


if __name__ == "__main__":
    main(tyro.cli(QuantizationConfig))
