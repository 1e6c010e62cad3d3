"""What critics see of real frames, against the processors they were published with: steps of colour, of 255.

    python benchmarks/critic_preprocessing.py clips/*.mp4        # at the published sizes; seconds a clip

The processors are transformers', which resize with Pillow, as torchvision does for the last two critics. Ours do it in
torch, so that a gradient flows.
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
"""Of a clip, evenly."""


def idefics(images: list[Image.Image]) -> Tensor:
    processor = Idefics2ImageProcessorPil(do_image_splitting=False, size={"shortest_edge": SHORT, "longest_edge": LONG})
    return processor(images, return_tensors="pt")["pixel_values"][0]


def qwen(images: list[Image.Image]) -> Tensor:
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": PIXELS, "longest_edge": PIXELS})
    return processor(images, return_tensors="pt")["pixel_values"]


def clip(images: list[Image.Image]) -> Tensor:
    return CLIPImageProcessorPil()(images, return_tensors="pt")["pixel_values"]


LOOKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[list[Image.Image]], Tensor], float]] = {
    "videoscore": (lambda frames: VideoScore.preprocess(SimpleNamespace(sides=SIDES), frames), idefics, 0.5),  # type: ignore
    "hpsv3": (lambda frames: HPSv3.preprocess(SimpleNamespace(name="hpsv3"), frames)[0], qwen, min(CLIP_STD)),  # type: ignore
    "pickscore, clipscore, mps": (lambda frames: hf_clip_preprocess(frames, 224), clip, min(CLIP_STD)),
    "aesthetic, imagereward": (clip_preprocess, clip, min(CLIP_STD)),
}
"""Critics -> what they see of frames, what their processor makes of them, and by what both divide colours."""


def main(paths: list[str]) -> None:
    """Print a table, a row for each sort of preprocessing."""
    worst: dict[str, list[Tensor]] = {name: [] for name in LOOKS}
    for path in paths:
        video = read_video(Path(path))
        frames = video[torch.linspace(0, len(video) - 1, FRAMES).long()]
        images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in to_uint8(frames).numpy()]
        for name, (ours, theirs, deviation) in LOOKS.items():
            worst[name].append((ours(frames) - theirs(images)).abs().flatten() * 255 * deviation)
    print(f"{len(paths)} clips, {FRAMES} frames of each; steps of colour of 255\n")
    print("| critic | mean | 99.9 of 100 | largest |\n| --- | --- | --- | --- |")
    for name, errors in worst.items():
        error = torch.cat(errors)
        tail = error.kthvalue(int(0.999 * len(error)) + 1).values
        print(f"| {name} | {error.mean():.4f} | {tail:.2f} | {error.max():.2f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
