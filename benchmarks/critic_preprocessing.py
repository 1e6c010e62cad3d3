"""The critics' preprocessing of real frames against their published processors, in grey levels (of 255).

    python benchmarks/critic_preprocessing.py clips/*.mp4        # at the published sizes; seconds a clip

The processors are transformers', which resize with Pillow, like torchvision for the last two critics. Ours are
differentiable torch code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Idefics2ImageProcessorPil, Qwen2VLImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from besttake.data.video import read_video, to_uint8
from besttake.rewards.critics.hpsv3 import PIXELS, HPSv3
from besttake.rewards.critics.videoscore import SIDES, VideoScore
from besttake.rewards.frames import CLIP_STD, clip_preprocess
from besttake.rewards.networks.image_critic import hf_clip_preprocess

SHORT, LONG = SIDES
FRAMES = 3
"""Evenly spaced frames per clip."""


def idefics(images: list[Image.Image]) -> Tensor:
    processor = Idefics2ImageProcessorPil(do_image_splitting=False, size={"shortest_edge": SHORT, "longest_edge": LONG})
    return processor(images, return_tensors="pt")["pixel_values"][0]


def qwen(images: list[Image.Image]) -> Tensor:
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": PIXELS, "longest_edge": PIXELS})
    return processor(images, return_tensors="pt")["pixel_values"]


def clip(images: list[Image.Image]) -> Tensor:
    return CLIPImageProcessorPil()(images, return_tensors="pt")["pixel_values"]


PREPROCESSING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[list[Image.Image]], Tensor], float]] = {
    "videoscore": (lambda frames: VideoScore.preprocess(SimpleNamespace(sides=SIDES), frames), idefics, 0.5),  # type: ignore
    "hpsv3": (lambda frames: HPSv3.preprocess(SimpleNamespace(name="hpsv3"), frames)[0], qwen, min(CLIP_STD)),  # type: ignore
    "pickscore, clipscore, mps": (lambda frames: hf_clip_preprocess(frames, 224), clip, min(CLIP_STD)),
    "aesthetic, imagereward": (clip_preprocess, clip, min(CLIP_STD)),
}
"""Critics -> our preprocessing, their published processor, and the standard deviation by which both divide."""


def main(paths: list[str]) -> None:
    """Print a table with one row per kind of preprocessing."""
    worst: dict[str, list[Tensor]] = {name: [] for name in PREPROCESSING}
    for path in paths:
        video = read_video(Path(path))
        frames = video[torch.linspace(0, len(video) - 1, FRAMES).long()]
        images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in to_uint8(frames).numpy()]
        for name, (ours, theirs, deviation) in PREPROCESSING.items():
            worst[name].append((ours(frames) - theirs(images)).abs().flatten() * 255 * deviation)
    print(f"{len(paths)} clips, {FRAMES} frames of each; grey levels of 255\n")
    print("| critic | mean | 99.9 of 100 | largest |\n| --- | --- | --- | --- |")
    for name, errors in worst.items():
        error = torch.cat(errors)
        tail = error.kthvalue(int(0.999 * len(error)) + 1).values
        print(f"| {name} | {error.mean():.4f} | {tail:.2f} | {error.max():.2f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
