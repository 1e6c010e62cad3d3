"""Profile of a GPU: the card's rates, the speed of our networks on it, and where the time goes.

Parts run by priority, each in its own process with a time limit, and print when they are done; all figures are written
to `benchmarks/results/<card>-<date>.json`. Weights are random, which does not affect times.

    python benchmarks/gpu.py --minutes 8                      # all parts, as far as time allows
    python benchmarks/gpu.py --parts attention decode-cogvideox-2b
    python benchmarks/gpu.py --tiny --parts network-tiny decode-tiny      # on a CPU, to test that it runs
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from besttake.models.lora import compute_as_peft, compute_in_base_dtype

ROOT = Path(__file__).parent.parent

MODELS = {
    "cogvideox-2b": "THUDM/CogVideoX-2b",
    "wan-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "cogvideox-5b": "THUDM/CogVideoX-5b",
    "tiny": "tiny-cogvideox",
}

ATTENTION = {"cogvideox-2b": (30, 17776, 64), "wan-1.3b": (12, 32760, 128), "cogvideox-5b": (48, 17776, 64)}
"""Heads, tokens and channels a head of one clip at the model's own size."""

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

KINDS = {
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "splitk"),
    "convolutions": ("conv", "implicit", "cudnn", "nchw", "nhwc"),
}
"""Words in the names of a kind's kernels, the first that fits; everything else reads and writes memory."""


@dataclass(frozen=True)
class GpuConfig:
    """Measure a GPU."""

    parts: tuple[str, ...] = (
        "rates",
        "attention",
        "network-cogvideox-2b",
        "decode-cogvideox-2b",
        "network-wan-1.3b",
        "compiled-cogvideox-2b",
        "decode-wan-1.3b",
        "training_step",
        "plan_accuracy",
        "memory_figure",
    )
    minutes: float = 8.0
    """For all parts; those that are left then are not run."""
    limit: float = 150.0
    """Seconds for one part."""
    tiny: bool = False
    """float32 on whatever there is, for trying this file out."""
    part: str = ""
    """Run one part in this process."""
    out: Path | None = None
    """Where to write the figures; by default benchmarks/results/<card>-<date>.json."""


# Timing --------------------------------------------------------------------------------------------------------------


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The median of some runs, after one to warm up."""
    work()
    synchronize()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        synchronize()
        found.append(time.perf_counter() - began)
    return sorted(found)[len(found) // 2]


def figures(work: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Seconds, and GiB at the fullest moment."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row = {"seconds": round(seconds(work, repeats), 4)}
    if torch.cuda.is_available():
        row["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return row


def tried(work: Callable[[], Any], repeats: int = 3) -> dict[str, Any]:
    """`figures`, or why there are none."""
    try:
        return figures(work, repeats)
    except (RuntimeError, ValueError) as error:
        return {"failed": str(error).splitlines()[0][:200]}


def kernels(work: Callable[[], Any]) -> dict[str, Any]:
    """Where the time of one run goes: shares by kind of kernel, and the longest ones."""
    if not torch.cuda.is_available():
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        synchronize()
    spent: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_time_total:
            low = event.name.lower()
            kind = next((kind for kind, words in KINDS.items() if any(w in low for w in words)), "memory")
            spent[kind] += event.device_time_total
            names[event.name[:90]] += event.device_time_total
    total = sum(spent.values()) or 1
    return {
        "milliseconds": round(total / 1e3, 1),
        "shares": {kind: round(time / total, 3) for kind, time in spent.most_common()},
        "longest": {name: round(time / total, 3) for name, time in names.most_common(14)},
    }


class Rows(dict[str, Any]):
    """A part's figures, printed as they are measured, so that they are not lost at the time limit."""

    def __setitem__(self, name: str, figure: Any) -> None:
        super().__setitem__(name, figure)
        print(json.dumps(self), file=sys.stderr, flush=True)


# Parts ---------------------------------------------------------------------------------------------------------------


def rates(config: GpuConfig) -> dict[str, Any]:
    """Large matrix products in bfloat16, TF32 and float8, TFLOP/s; copies, TB/s."""
    side = 512 if config.tiny else 8192
    device = "cpu" if config.tiny else "cuda"
    row = {}
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    half = a.bfloat16(), b.bfloat16()
    row["bfloat16"] = 2 * side**3 / seconds(lambda: half[0] @ half[1], 10) / 1e12
    row["float32"] = 2 * side**3 / seconds(lambda: a @ b, 3) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = True
    row["tf32"] = 2 * side**3 / seconds(lambda: a @ b, 3) / 1e12
    if not config.tiny:
        one = torch.ones((), device=device)
        eight = half[0].to(torch.float8_e4m3fn), half[1].to(torch.float8_e4m3fn).t().contiguous().t()
        row["float8"] = (
            2 * side**3 / seconds(lambda: torch._scaled_mm(*eight, one, one, out_dtype=torch.bfloat16), 10) / 1e12
        )
        for m, k, n in ((35552, 1920, 1920), (35552, 1920, 7680), (32760, 1536, 1536), (32760, 1536, 8960)):
            x, w = (torch.randn(m, k, device=device).bfloat16(), torch.randn(k, n, device=device).bfloat16())
            row[f"bfloat16 {m} x {k} x {n}"] = 2 * m * k * n / seconds(lambda x=x, w=w: x @ w, 10) / 1e12
    big = torch.empty(side * side * 8, device=device)
    row["copy"] = 2 * big.nbytes / seconds(lambda: big.clone(), 5) / 1e12
    return {name: round(rate, 2) for name, rate in row.items()}


def attention(config: GpuConfig) -> dict[str, Any]:
    """TFLOP/s of each of torch's own kernels, forward alone and with the backward pass, and how far they differ."""
    rows: dict[str, Any] = {}
    for model, (heads, tokens, channels) in ATTENTION.items():
        tokens = 64 if config.tiny else tokens
        tensors = (torch.randn(1, heads, tokens, channels) for _ in range(3))
        q, k, v = (x.to("cpu" if config.tiny else "cuda", torch.bfloat16).requires_grad_() for x in tensors)
        work, reference = 4 * heads * tokens**2 * channels, None
        for name, backend in {"": SDPBackend.MATH, **BACKENDS}.items() if config.tiny else BACKENDS.items():
            attend = partial(F.scaled_dot_product_attention, q, k, v)
            try:
                with sdpa_kernel(backend), torch.no_grad():
                    out, forward = attend().float(), seconds(attend, 5)
                with sdpa_kernel(backend):
                    both = seconds(partial(with_gradient, attend, v.detach()), 3)
            except RuntimeError as error:
                rows[f"{model} {name}"] = {"failed": str(error).splitlines()[0][:120]}
                continue
            reference = out if reference is None else reference
            rows[f"{model} {name}"] = {
                "forward": round(work / forward / 1e12, 1),
                "forward and backward": round(3.5 * work / both / 1e12, 1),
                "largest difference": round(float((out - reference).abs().max()), 5),
            }
    return rows


def with_gradient(work: Callable[[], Tensor], gradient: Tensor) -> None:
    work().backward(gradient)


@dataclass
class Workload:
    """A model at its real size, a policy on it, and something for them to predict."""

    model: Any
    policy: Any
    x_t: Tensor
    t: Tensor
    condition: dict[str, Tensor]

    def forward(self) -> None:
        with torch.no_grad():
            self.policy.predict(self.x_t, self.t, self.condition)

    def base(self) -> None:
        with torch.no_grad():
            self.policy.reference.predict(self.x_t, self.t, self.condition)

    def both(self) -> None:
        self.policy.predict(self.x_t, self.t, self.condition).float().square().mean().backward()
        for weight in self.policy.trainable.values():
            weight.grad = None

    def lora(self, peft: bool) -> None:
        """The adapters as PEFT computes them, in float32, or as we do, in the base's dtype."""
        denoiser = self.model.denoiser
        compute_as_peft(denoiser) if peft else compute_in_base_dtype(denoiser)


def make_workload(name: str, config: GpuConfig, rows: int = 1) -> Workload:
    from training_step import random_model

    from besttake.models.policy import Policy, PolicyConfig

    device = "cpu" if config.tiny else "cuda"
    model = random_model(MODELS[name], torch.float32 if config.tiny else torch.bfloat16, device)
    policy = Policy(model, PolicyConfig(rank=4 if config.tiny else 64))
    held = model.denoiser.config
    width = held.get("text_embed_dim") or held.get("text_dim")
    text = torch.randn(rows, model.longest_prompt(), width, device=device) * 0.1
    x_t = torch.randn(rows, *model.latent_shape(*model.default_size()), device=device)
    return Workload(
        model, policy, x_t, torch.full((rows,), 0.5, device=device), {"text": text.to(model.denoiser.dtype)}
    )


def saving_attention(function: Any, *inputs: Any) -> Any:
    """Checkpointing that keeps attention's outputs and computes the rest again."""
    ops = torch.ops.aten
    kept = [
        ops._scaled_dot_product_flash_attention.default,
        ops._scaled_dot_product_cudnn_attention.default,
        ops._scaled_dot_product_efficient_attention.default,
        ops._scaled_dot_product_flash_attention_for_cpu.default,
    ]

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    return checkpoint(
        function, *inputs, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy)
    )


def network(name: str, config: GpuConfig) -> dict[str, Any]:
    """A pass of one clip through the denoiser, by what the LoRA is held in, which kernel, what is kept."""
    workload, rows = make_workload(name, config), Rows()
    denoiser = workload.model.denoiser
    rows["forward, no LoRA"] = tried(workload.base)
    workload.lora(peft=True)
    rows["forward, LoRA float32"] = tried(workload.forward)
    torch.backends.cuda.matmul.allow_tf32 = True
    rows["forward, LoRA float32, TF32"] = tried(workload.forward)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows["kernels, LoRA float32"] = kernels(workload.forward)
    workload.lora(peft=False)
    rows["forward, LoRA bfloat16"] = tried(workload.forward)
    for backend in BACKENDS:
        with sdpa_kernel(BACKENDS[backend]):
            rows[f"forward, no LoRA, {backend}"] = tried(workload.base)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if not config.tiny else nullcontext():
        rows["kernels, no LoRA, cudnn"] = kernels(workload.base)
        for rows_at_once in (2, 4):
            more = Workload(
                workload.model,
                workload.policy,
                workload.x_t.repeat(rows_at_once, 1, 1, 1, 1),
                workload.t.repeat(rows_at_once),
                {key: value.repeat(rows_at_once, 1, 1) for key, value in workload.condition.items()},
            )
            rows[f"forward of {rows_at_once} clips, no LoRA, cudnn"] = tried(more.base, 2)
            del more
        rows["forward, LoRA bfloat16, cudnn"] = tried(workload.forward)
        denoiser.enable_gradient_checkpointing()
        rows["forward and backward, LoRA bfloat16, checkpointing, cudnn"] = tried(workload.both, 2)
        rows["kernels of forward and backward, cudnn"] = kernels(workload.both)
        denoiser.enable_gradient_checkpointing(saving_attention)
        rows["forward and backward, LoRA bfloat16, attention kept, cudnn"] = tried(workload.both, 2)
        denoiser.disable_gradient_checkpointing()
        rows["forward and backward, LoRA bfloat16, all kept, cudnn"] = tried(workload.both, 2)
    denoiser.enable_gradient_checkpointing()
    rows["forward and backward, LoRA bfloat16, checkpointing"] = tried(workload.both, 2)
    workload.lora(peft=True)
    rows["forward and backward, LoRA float32, checkpointing"] = tried(workload.both, 2)
    return rows


def compiled(name: str, config: GpuConfig) -> dict[str, Any]:
    """The same with compiled blocks: sampling, then training with what is kept chosen by hand."""
    from besttake.models.compiled import compile_blocks

    workload, rows = make_workload(name, config), Rows()
    workload.lora(peft=False)
    compile_blocks(workload.model.denoiser)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if not config.tiny else nullcontext():
        began = time.perf_counter()
        rows["forward, no LoRA, cudnn"] = tried(workload.base)
        rows["seconds to compile it"] = round(time.perf_counter() - began, 1)
        rows["kernels, no LoRA, cudnn"] = kernels(workload.base)
        rows["forward, LoRA bfloat16, cudnn"] = tried(workload.forward)
        workload.model.denoiser.enable_gradient_checkpointing()
        began = time.perf_counter()
        rows["forward and backward, checkpointing, cudnn"] = tried(workload.both, 2)
        rows["seconds to compile that"] = round(time.perf_counter() - began, 1)
        rows["kernels of forward and backward, cudnn"] = kernels(workload.both)
        workload.model.denoiser.disable_gradient_checkpointing()
        rows["forward and backward, all kept, cudnn"] = tried(workload.both, 2)
    return rows


def decode(name: str, config: GpuConfig) -> dict[str, Any]:
    """Decoding a clip: as it is, with cuDNN's own search, channels last, compiled; and how far each is from float32."""
    from training_step import random_model

    device = "cpu" if config.tiny else "cuda"
    model, rows = random_model(MODELS[name], torch.float32 if config.tiny else torch.bfloat16, device), Rows()
    size = model.default_size()
    latents = torch.randn(1, *model.latent_shape(*size), device=device)

    def work() -> Tensor:
        with torch.no_grad():
            return model.decode(latents, size[0])

    with model.using("vae"):
        vae = model.pipeline.vae
        rows["held in"] = str(vae.dtype)
        rows["as it is"] = tried(work, 2)
        rows["kernels"] = kernels(work)
        torch.backends.cudnn.benchmark = True
        rows["cudnn.benchmark"] = tried(work, 2)
        rows["kernels, cudnn.benchmark"] = kernels(work)
        if vae.dtype == torch.float32:
            with torch.autocast(device, torch.bfloat16):
                rows["autocast to bfloat16"] = tried(work, 2)
        for weight in vae.parameters():
            if weight.ndim in (4, 5):
                order = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
                weight.data = weight.data.to(memory_format=order)
        rows["channels last"] = tried(work, 2)
        rows["kernels, channels last"] = kernels(work)
        began = time.perf_counter()
        vae.decoder.compile()
        rows["channels last, compiled"] = tried(work, 2)
        rows["seconds to compile"] = round(time.perf_counter() - began, 1)
    return rows


def script(*arguments: str) -> Callable[[GpuConfig], dict[str, Any]]:
    """Another benchmark, whose output is kept as it is."""

    def run(config: GpuConfig) -> dict[str, Any]:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return {"command": " ".join(arguments), "status": done.returncode, "output": done.stdout.splitlines()[-40:]}

    return run


def part(name: str, config: GpuConfig) -> dict[str, Any]:
    """One part's figures, by its name."""
    here: dict[str, Callable[[GpuConfig], dict[str, Any]]] = {
        "rates": rates,
        "attention": attention,
        "training_step": script("benchmarks/training_step.py", "--models", MODELS["cogvideox-2b"], "--repeats", "1"),
        "plan_accuracy": script(
            "benchmarks/plan_accuracy.py", "--recipe", "onlinevpo-wan-1.3b", "--card", "H100", "--rows", "1"
        ),
        "memory_figure": script(
            *("benchmarks/memory_figure.py", "--device", "cuda", "--train", "full", "--methods", "dpo"),
            *("--sizes", "720p", "--frames", "68"),
        ),
    }
    if name in here:
        return here[name](config)
    kind, _, model = name.partition("-")
    if kind not in KINDS_OF_PART or model not in MODELS:
        known = [*here, *(f"{kind}-{model}" for kind in KINDS_OF_PART for model in MODELS)]
        raise ValueError(f"there is no part '{name}'; there are {', '.join(known)}")
    return KINDS_OF_PART[kind](model, config)


KINDS_OF_PART: dict[str, Callable[[str, GpuConfig], dict[str, Any]]] = {
    "network": network,
    "compiled": compiled,
    "decode": decode,
}


# All of them ---------------------------------------------------------------------------------------------------------


def main(config: GpuConfig) -> None:
    if config.part:
        print(json.dumps(part(config.part, config)), file=sys.stderr)
        return
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    today = datetime.date.today().isoformat()
    out = config.out or ROOT / "benchmarks" / "results" / f"{card.replace(' ', '-')}-{today}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    found |= {"card": card, "date": today, "torch": torch.__version__, "commit": commit()}
    until = time.monotonic() + 60 * config.minutes
    for name in config.parts:
        left = min(config.limit, until - time.monotonic())
        if left < 10:
            print(f"## {name}: no time left")
            continue
        began = time.monotonic()
        found[name] = run(name, config, left)
        print(f"## {name}, {time.monotonic() - began:.0f} s\n{json.dumps(found[name], indent=1)}", flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


def run(name: str, config: GpuConfig, limit: float) -> Any:
    """A part in a process of its own, so that one that fails or hangs costs the others nothing."""
    command = [sys.executable, __file__, "--part", name, *(["--tiny"] if config.tiny else [])]
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    try:
        done = subprocess.run(command, env=environment, text=True, stderr=subprocess.PIPE, timeout=limit)
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stderr or ""
        return {**figures_in(output if isinstance(output, str) else output.decode()), "stopped": f"after {limit:.0f} s"}
    found = figures_in(done.stderr)
    return found if done.returncode == 0 else {**found, "failed": done.stderr.splitlines()[-12:]}


def figures_in(output: str) -> dict[str, Any]:
    """The last figures that a part has printed."""
    last = [line for line in output.splitlines() if line.startswith("{") and line.endswith("}")][-1:]
    return json.loads(last[0]) if last else {}


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, capture_output=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main(tyro.cli(GpuConfig))
