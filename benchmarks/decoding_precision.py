"""What decoding in bfloat16 costs in quality: PSNR against float32, in dB, of the same latents of real clips.

Latents are those of clips of the simulated world for the embedded models, or of a folder of videos for any other.

    python benchmarks/decoding_precision.py
    python benchmarks/decoding_precision.py --models Wan-AI/Wan2.1-T2V-1.3B-Diffusers --clips my_videos --device cuda
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from besttake.data.video import read_video
from besttake.models import VideoModel, load_model
from besttake.world.clips import make_batch


@dataclass(frozen=True)
class DecodingPrecisionConfig:
    """Compare decoding in bfloat16 with float32."""

    models: tuple[str, ...] = ("tiny-cogvideox", "tiny-wan")
    clips: Path | None = None
    """Folder of .mp4 files; by default clips of the simulated world."""
    count: int = 8
    device: str = "cpu"


def main(config: DecodingPrecisionConfig) -> None:
    print("| model | autoencoder | PSNR in bfloat16, dB | worst frame |\n| --- | --- | --- | --- |")
    for name in config.models:
        model = load_model(name, device=config.device)
        with torch.no_grad(), model.using("vae"):
            latents = model.encode(videos(config, model).to(model.device))
            exact = model.decode(latents).clamp(-1, 1)
            vae = model.pipeline.vae.to(torch.bfloat16)
            rounded = model.decode(latents).float().clamp(-1, 1)
            error = (rounded - exact).square().mean((2, 3, 4))
            print(f"| {name} | {type(vae).__name__} | {psnr(error.mean()):.1f} | {psnr(error.max()):.1f} |")


def videos(config: DecodingPrecisionConfig, model: VideoModel) -> Tensor:
    frames, height, width = model.default_size()
    if config.clips is None:
        return make_batch(0, 0, config.count, split="test", frames=frames)[0]
    files = sorted(config.clips.glob("*.mp4"))[: config.count]
    return torch.stack([read_video(file, fps=model.fps, frames=frames, size=(height, width)) for file in files])


def psnr(error: Tensor) -> float:
    """Of a mean squared error on [-1, 1]."""
    return float(10 * torch.log10(4 / error))


if __name__ == "__main__":
    main(tyro.cli(DecodingPrecisionConfig))
