"""A pass of one clip through a denoiser: by how the LoRA is computed, attention's kernel, what is kept, compiled."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from random_models import PROMPT, random_model
from timing import Rows, kernels, tried
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from besttake.models.compiled import compile_blocks
from besttake.models.lora import compute_as_peft, compute_in_base_dtype
from besttake.models.policy import Policy, PolicyConfig
from gpu_parts.rates import BACKENDS


@dataclass(frozen=True)
class Workload:
    """A model, a policy on it, and clips for them to predict."""

    model: Any
    policy: Policy
    x_t: Tensor
    t: Tensor
    condition: dict[str, Tensor]

    def forward(self) -> None:
        with torch.no_grad():
            self.policy.predict(self.x_t, self.t, self.condition)

    def base(self) -> None:
        """Without a LoRA."""
        with torch.no_grad():
            self.policy.reference.predict(self.x_t, self.t, self.condition)

    def both(self) -> None:
        """Forward and backward."""
        self.policy.predict(self.x_t, self.t, self.condition).float().square().mean().backward()
        for weight in self.policy.trainable.values():
            weight.grad = None

    def times(self, clips: int) -> Workload:
        """The same with several clips at once."""
        condition = {name: value.repeat_interleave(clips, 0) for name, value in self.condition.items()}
        return replace(self, x_t=self.x_t.repeat(clips, 1, 1, 1, 1), t=self.t.repeat(clips), condition=condition)


def make_workload(source: str, tiny: bool) -> Workload:
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)
    model = random_model(source, dtype, device)
    policy = Policy(model, PolicyConfig(rank=4 if tiny else 64))
    x_t = torch.randn(1, *model.latent_shape(*model.default_size()), device=device)
    return Workload(model, policy, x_t, torch.full((1,), 0.5, device=device), model.encode_prompts([PROMPT]))


def network(source: str, rows: Rows, tiny: bool) -> None:
    """The passes, eager."""
    workload = make_workload(source, tiny)
    denoiser = workload.model.denoiser
    rows["forward, no LoRA"] = tried(workload.base, 1)
    rows["forward, LoRA"] = tried(workload.forward, 1)
    compute_as_peft(denoiser)
    rows["forward, LoRA as PEFT computes it"] = tried(workload.forward, 1)
    workload.policy.set_gradient_checkpointing("full")
    rows["forward and backward, LoRA as PEFT computes it, checkpointing"] = tried(workload.both, 1)
    if not tiny:
        compute_in_base_dtype(denoiser)
    rows["forward and backward, LoRA, checkpointing"] = tried(workload.both, 1)
    workload.policy.set_gradient_checkpointing("selective")
    rows["forward and backward, LoRA, attention kept"] = tried(workload.both, 1)
    workload.policy.set_gradient_checkpointing("none")
    rows["forward and backward, LoRA, all kept"] = tried(workload.both, 1)
    for name, backend in () if tiny else BACKENDS.items():
        with sdpa_kernel(backend):
            rows[f"forward, no LoRA, {name}"] = tried(workload.base, 1)
    for clips in (2,) if tiny else (2, 4):
        rows[f"forward of {clips} clips, no LoRA"] = tried(workload.times(clips).base, 1)
    if not tiny:
        rows["kernels, LoRA"] = kernels(workload.forward)
        workload.policy.set_gradient_checkpointing("full")
        rows["kernels of forward and backward, LoRA, checkpointing"] = kernels(workload.both)


def compiled(source: str, rows: Rows, tiny: bool) -> None:
    """The passes with compiled blocks."""
    workload = make_workload(source, tiny)
    denoiser = workload.model.denoiser
    compile_blocks(denoiser, **{"backend": "eager"} if tiny else {})
    began = time.perf_counter()
    rows["forward, no LoRA"] = tried(workload.base, 1)
    rows["seconds to compile and run it"] = round(time.perf_counter() - began, 1)
    rows["forward, LoRA"] = tried(workload.forward, 1)
    for level, name in (("selective", "attention kept"), ("full", "checkpointing"), ("none", "all kept")):
        workload.policy.set_gradient_checkpointing(level)
        began = time.perf_counter()
        rows[f"forward and backward, LoRA, {name}"] = tried(workload.both, 1)
        rows[f"seconds to compile and run that, {name}"] = round(time.perf_counter() - began, 1)
    if not tiny:
        workload.policy.set_gradient_checkpointing("selective")
        rows["kernels of forward and backward, LoRA, attention kept"] = kernels(workload.both)
