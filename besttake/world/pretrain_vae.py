"""The tiny autoencoders: the optimal linear codec of the world's patches, computed without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from besttake.world.build import FRAMES, VAES
from besttake.world.clips import make_batch
from besttake.world.linear_codec import start_as_linear_codec
from besttake.world.training_log import TrainingLog, save_state


@dataclass(frozen=True)
class VAEConfig:
    """Settings of an autoencoder."""

    family: str = "tiny-cogvideox"
    out: Path = Path("runs/pretrain")
    clips: int = 150
    flawed_share: float = 0.3
    seed: int = 11


def make_vae(config: VAEConfig) -> Any:
    """Make the autoencoder of a family; state and log are in `config.out / family / vae`."""
    torch.manual_seed(config.seed)
    folder, vae = config.out / config.family / "vae", VAES[config.family]()
    start_as_linear_codec(vae, make_batch(config.seed, 10**7, config.clips, None, config.flawed_share)[0])
    TrainingLog(folder, 0).write(0, psnr=psnr(vae, FRAMES[config.family]))
    save_state(folder, vae, None, 0)
    return vae


@torch.no_grad()
def psnr(vae: Any, frames: int, n: int = 16) -> float:
    """Mean peak signal-to-noise ratio in dB on clean clips of validation captions, peak-to-peak 2."""
    x = make_batch(99, 0, n, "validation", frames=frames)[0].transpose(1, 2)
    restored = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    mse = ((restored - x) / 2).square().mean((1, 2, 3, 4))
    return float((-10 * mse.log10()).mean())
