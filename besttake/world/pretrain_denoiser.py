"""Pretraining of the tiny base models on captioned clips, many of them flawed, like web data.

Plain diffusion loss on the schedule that sampling and preference learning use. Matrices are trained with Muon, other
parameters with AdamW; the exported weights are an exponential moving average. Clips are rendered during training.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from besttake.models import VideoModel, model_classes
from besttake.models.schedules import Schedule
from besttake.world.build import build
from besttake.world.clips import make_batch
from besttake.world.muon import Muon
from besttake.world.precision import mixed_precision
from besttake.world.training_log import TrainingLog, load_state, save_state

MOTION_WEIGHTS = {
    "circles": 2.0,
    "swings": 2.0,
    "floats": 2.0,
    "spins": 3.0,
    "hits": 4.0,
    "falls": 0.6,
    "slides": 0.5,
    "thrown": 0.5,
}
"""Relative sampling frequency of each motion: periodic motions are learned last."""

SCALE_CLIPS = 64
"""Clips on which the latents' scale is measured."""


@dataclass(frozen=True)
class DenoiserConfig:
    """Training settings of a base model; the defaults are those of `tiny-cogvideox`."""

    family: str = "tiny-cogvideox"
    out: Path = Path("runs/pretrain")
    start: Path | None = None
    """Pipeline folder of an earlier training to continue: its autoencoder, denoiser and step count."""
    steps: int = 41_000
    batch: int = 24
    """Clips per step and process."""
    lr: float = 2e-3
    """Muon's learning rate, scaled like AdamW's; AdamW uses half of it."""
    decay: float = 0.35
    """Last fraction of the steps, in which the learning rate falls to zero."""
    average: float = 0.998
    flawed_share: float = 0.3
    uncaptioned_share: float = 0.1
    """Fraction of clips trained without caption, for classifier-free guidance."""
    first_clips: int = 1024
    clips_per_step: int = 2
    """Clips in the buffer at the start, and new clips per step."""
    bank: int = 10_000
    """Capacity of the buffer in clips; the oldest are dropped."""
    save_every: int = 200
    seed: int = 23
    compile: bool = False
    """Compile the denoiser: steps take a quarter less time, after a minute of compilation; needs a C++ compiler."""


def train_denoiser(config: DenoiserConfig) -> None:
    """Train or resume one base model on the latents of its autoencoder."""
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(
        True
    )  # also on CPUs, where attention would be cast to float32
    folder = config.out / config.family / "denoiser"
    if config.start and not (folder / "state.pt").exists():
        start_from_pipeline(config.start, config)
    model = load_parts(config.family, config.out)
    denoiser, bank = model.denoiser.train().requires_grad_(True), ClipBuffer(model, config)
    optimizer = _Optimizers(denoiser, config)
    if config.compile:
        denoiser.compile(dynamic=False)
    ema = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
    done = load_state(folder, denoiser, optimizer)
    if done:
        ema = torch.load(folder / "state.pt", weights_only=True)["average"]
    log = TrainingLog(folder, config.steps, done)
    for step in range(done, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 10_000_019 + step)
        bank.grow_to(config.first_clips + step * config.clips_per_step)
        loss = diffusion_loss(model, *bank.sample(config, generator), generator)
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step(learning_rate(step, config))
        decay = min(config.average, (step + 1) / (step + 10))
        for name, parameter in denoiser.named_parameters():
            ema[name].lerp_(parameter.detach(), 1 - decay)
        log.add(step + 1, loss=loss.item())
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            log.write(step + 1, clips=float(len(bank)))
            save_state(folder, denoiser, optimizer, step + 1, average=ema)


def start_from_pipeline(start: Path, config: DenoiserConfig) -> None:
    """Write the training state of an exported pipeline, with a new optimizer."""
    pipeline, out = DiffusionPipeline.from_pretrained(start, dtype=torch.float32), config.out / config.family
    for part in ("vae", "denoiser"):
        (out / part).mkdir(parents=True, exist_ok=True)
        rows = json.loads((start / f"training-{part}.json").read_text())
        (out / part / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_state(out / "vae", pipeline.vae, None, 0)
    denoiser = pipeline.transformer.requires_grad_(True)
    ema = {name: parameter.detach().clone() for name, parameter in denoiser.named_parameters()}
    save_state(out / "denoiser", denoiser, _Optimizers(denoiser, config), rows[-1]["step"], average=ema)


def learning_rate(step: int, config: DenoiserConfig) -> float:
    """Factor on the learning rate: linear warm-up over 200 steps, constant, then linear decay to zero."""
    left = (config.steps - step) / (config.decay * config.steps)
    return min(1.0, (step + 1) / 200, left)


def diffusion_loss(model: VideoModel, latents: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the prediction at sampled times."""
    t = training_times(model.schedule, len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator)
    x_t, target = model.schedule.add_noise(latents, noise, t), model.schedule.target(latents, noise, t)
    with mixed_precision(), sdpa_kernel(SDPBackend.MATH):  # the fused backward is slow on CPU
        prediction = model.predict(model.denoiser, x_t, t, {"text": text})
    return (prediction.float() - target).square().mean()


def training_times(schedule: Schedule, n: int, generator: torch.Generator, bend: float = 0.5) -> Tensor:
    """Stratified random times, denser in the middle of the schedule, where shapes are decided.

    Relative to the schedule's own density, it is 1 / (1 - bend) in the middle and 1 / (1 + bend) at the ends.
    """
    even = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    edges = (even + bend * (2 * torch.pi * even).sin() / (2 * torch.pi)).clamp(0, 1)
    return schedule.times(torch.lerp(edges[:-1], edges[1:], torch.rand(n, generator=generator).double()).float())


class ClipBuffer:
    """Buffer of latents and text embeddings of the newest clips of a stream."""

    def __init__(self, model: VideoModel, config: DenoiserConfig):
        self.model, self.config = model, config
        self.latents: list[Tensor] = []
        self.texts: list[Tensor] = []
        self.weights: list[float] = []
        self.made = 0
        self.empty = model.encode_negative(1, "")["text"]

    def __len__(self) -> int:
        return len(self.latents)

    @torch.no_grad()
    def grow_to(self, n: int, batch: int = 32) -> None:
        """Render and encode clips up to the `n`th, at least half a batch at a time, and drop the oldest."""
        seed, size = self.config.seed, self.config.bank
        self.made = max(self.made, n - size)
        while self.made + batch // 2 <= n:
            count = min(batch, n - self.made)
            frames = self.model.default_size()[0]
            videos, clips = make_batch(seed, self.made, count, "train", self.config.flawed_share, frames)
            with mixed_precision():
                self.latents += list(self.model.encode(videos).half())
            self.texts += list(self.model.embed([str(clip.caption) for clip in clips])["text"].half())
            self.weights += [MOTION_WEIGHTS.get(clip.caption.motion.split()[0], 1.0) for clip in clips]
            self.made += count
        for kept in (self.latents, self.texts, self.weights):
            del kept[:-size]

    def sample(self, config: DenoiserConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample a batch of latents and text embeddings, some with the empty caption."""
        rows = torch.multinomial(torch.tensor(self.weights), config.batch, True, generator=generator).tolist()
        text = torch.stack([self.texts[i].float() for i in rows])
        without = torch.rand(config.batch, generator=generator) < config.uncaptioned_share
        return torch.stack([self.latents[i].float() for i in rows]), torch.where(
            without[:, None, None], self.empty, text
        )


class _Optimizers:
    """Muon for the matrices of the blocks, AdamW for all other parameters, with a common state dict."""

    def __init__(self, denoiser: nn.Module, config: DenoiserConfig):
        inside = {n: p for n, p in denoiser.named_parameters() if "blocks" in n and p.ndim == 2 and min(p.shape) > 16}
        others = [p for n, p in denoiser.named_parameters() if n not in inside]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(inside.values(), config.lr), config.lr),
            (torch.optim.AdamW(others, config.lr / 2, betas=(0.9, 0.98), weight_decay=0.0), config.lr / 2),
        ]

    def step(self, factor: float) -> None:
        for part, lr in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * factor
            part.step()
            part.zero_grad()

    def state_dict(self) -> dict:
        return {str(i): part.state_dict() for i, (part, _) in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        for i, (part, _) in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def load_parts(family: str, out: Path, denoiser: bool = False) -> VideoModel:
    """Load a family's model with its autoencoder, latents scaled to unit variance, and optionally its denoiser."""
    pipeline: Any = build(family)
    state = torch.load(out / family / "vae" / "state.pt", weights_only=True)
    pipeline.vae.load_state_dict(state["module"])
    model = next(f for f in model_classes() if type(pipeline).__name__ in f.pipelines)(pipeline, family)
    set_latent_scale(model)
    if denoiser:
        ema = torch.load(out / family / "denoiser" / "state.pt", weights_only=True)["average"]
        model.denoiser.load_state_dict(ema, strict=False)
    return model


@torch.no_grad()
def set_latent_scale(model: VideoModel) -> None:
    """Write the latents' normalisation constants into the autoencoder's config (for CogVideoX only the scale)."""
    vae = model.pipeline.vae
    latents = vae.encode(_scale_clips(SCALE_CLIPS, model.default_size()[0])).latent_dist.mode()
    if "latents_mean" in vae.config and vae.config.latents_mean is not None:
        mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    else:
        vae.register_to_config(scaling_factor=1 / float(latents.std()))
        model.pipeline.vae_scaling_factor_image = vae.config.scaling_factor


@functools.cache
def _scale_clips(n: int, frames: int) -> Tensor:
    """The clips (n, 3, f, h, w) whose latents' scale is measured."""
    return make_batch(5, 0, n, frames=frames)[0].transpose(1, 2)
