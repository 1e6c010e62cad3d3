"""Making of the tiny autoencoders from clips of the world.

That of `tiny-cogvideox` is the best linear codec of patches (`linear_codec.py`), found without training. That of
`tiny-wan` is trained: L1 + 2 L2 on pixels in which the bodies weigh more than the (mostly empty) background, and a
light penalty on the latents instead of a KL term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from besttake.world.build import VAES
from besttake.world.clips import make_batch
from besttake.world.linear_codec import start_as_linear_codec
from besttake.world.training_log import TrainingLog, load_state, save_state


@dataclass(frozen=True)
class VAEConfig:
    """Settings of an autoencoder's training."""

    family: str = "tiny-cogvideox"
    out: Path = Path("runs/pretrain")
    steps: int = 4000
    batch: int = 2
    lr: float = 2e-3
    flawed_share: float = 0.4
    seed: int = 11


def train_vae(config: VAEConfig) -> Any:
    """Make (or go on training) the autoencoder of one family; state and log lie in `config.out / family / vae`."""
    torch.manual_seed(config.seed)
    folder = config.out / config.family / "vae"
    vae, total = VAES[config.family](), config.steps
    optimizer = torch.optim.AdamW(vae.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    if config.family == "tiny-cogvideox":
        start_as_linear_codec(vae, make_batch(config.seed, 10**7, 150, None, config.flawed_share)[0])
        TrainingLog(folder, 0).write(0, psnr=psnr(vae))
        save_state(folder, vae, optimizer, 0)
        return vae
    done = load_state(folder, vae, optimizer)
    log = TrainingLog(folder, total, done)
    for step in range(done, total):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1, step / 200) * (0.01 + 0.5 * (1 + math.cos(math.pi * step / total)))
        videos, _ = make_batch(config.seed, step * config.batch, config.batch, None, config.flawed_share)
        loss = reconstruction_loss(vae, videos, torch.Generator().manual_seed(step))
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        log.add(step + 1, loss=loss.item())
        if (step + 1) % 200 == 0 or step + 1 == total:
            log.write(step + 1, psnr=psnr(vae))
            save_state(folder, vae, optimizer, step + 1)
    return vae


def reconstruction_loss(vae: Any, videos: Tensor, generator: torch.Generator) -> Tensor:
    """The training loss on videos `b f c h w`; a little latent noise keeps the latent space smooth."""
    x = videos.transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(x).latent_dist.mode()
        noisy = latents + 0.03 * torch.randn(latents.shape, generator=generator)
        restored = vae.decode(noisy).sample.float()
    weight = 1 + 6 * (saturation(x) > 0.2).float()
    error = restored - x
    return (weight * error.abs()).mean() + 2 * (weight * error.square()).mean() + 1e-3 * latents.square().mean()


def saturation(x: Tensor) -> Tensor:
    """Distance of each pixel from its grey, for `b c f h w`: large on bodies, zero on the neutral background."""
    return (x - x.mean(1, keepdim=True)).norm(dim=1, keepdim=True)


@torch.no_grad()
def psnr(vae: Any, n: int = 16) -> float:
    """Mean peak signal-to-noise ratio in dB on clean clips of validation captions, peak-to-peak 2."""
    x = make_batch(99, 0, n, "validation")[0].transpose(1, 2)
    restored = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    mse = ((restored - x) / 2).square().mean((1, 2, 3, 4))
    return float((-10 * mse.log10()).mean())
