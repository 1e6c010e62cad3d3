"""Differentiable preprocessing for critics: frame selection, resizing and normalisation as in their training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of OpenAI's CLIP and its successors, for pixels in [0, 1]."""


def even_frames(frames: int, n: int) -> list[int]:
    """Indices of `n` evenly spaced frames, first to last, rounded down like `numpy.linspace(...).astype(int)`."""
    return [int(index) for index in torch.linspace(0, frames - 1, n, dtype=torch.float64).tolist()]


def frames_at_rate(frames: int, fps: float, rate: float) -> list[int]:
    """Indices of the frames shown at 0, 1 / rate, 2 / rate, ... seconds of a clip of `fps` frames a second."""
    count = max(1, int(frames / fps * rate + 1e-6))
    return [min(frames - 1, round(k * fps / rate)) for k in range(count)]


def to_pixels(frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """From [-1, 1] to whole numbers in 0..255, like a file; the gradient ignores the rounding (straight-through)."""
    exact = (frames.float().clamp(-1, 1) + 1) * 127.5
    return exact + (exact.round() - exact).detach()


def resize_like_pillow(
    frames: Float[Tensor, "n 3 h w"], size: tuple[int, int], mode: str = "bicubic"
) -> Float[Tensor, "n 3 h w"]:
    """Resize frames in 0..255 like Pillow: first in width, then in height, each antialiased and rounded."""
    return resize_like_torchvision(resize_like_torchvision(frames, (frames.shape[-2], size[1]), mode), size, mode)


def resize_like_torchvision(
    frames: Float[Tensor, "n 3 h w"], size: tuple[int, int], mode: str = "bicubic"
) -> Float[Tensor, "n 3 h w"]:
    """Resize frames in 0..255 like torchvision resizes tensors: antialiased, rounded once at the end.

    About a tenth of the pixels differ from Pillow's result by a few grey levels. The gradient ignores the rounding.
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    exact = F.interpolate(frames, size, mode=mode, antialias=True).clamp(0, 255)
    return exact + (exact.round() - exact).detach()


def resize_shorter_side(frames: Float[Tensor, "n 3 h w"], side: int, mode: str = "bicubic") -> Float[Tensor, "n 3 h w"]:
    """Resize so that the shorter side has `side` pixels and the longer is rounded down, like torchvision and CLIP."""
    height, width = frames.shape[-2:]
    short, long = min(height, width), max(height, width)
    other = int(side * long / short)
    return resize_like_pillow(frames, (side, other) if height <= width else (other, side), mode)


def centre_crop(frames: Float[Tensor, "n 3 h w"], side: int) -> Float[Tensor, "n 3 h w"]:
    """Crop the central square of `side` pixels."""
    top, left = (round((length - side) / 2) for length in frames.shape[-2:])
    return frames[..., top : top + side, left : left + side]


def normalise(
    frames: Float[Tensor, "n 3 h w"], mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Float[Tensor, "n 3 h w"]:
    """From 0..255 to about mean 0 and standard deviation 1."""
    shift, scale = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (mean, std))
    return (frames / 255 - shift) / scale


def clip_preprocess(frames: Float[Tensor, "n 3 h w"], side: int = 224) -> Float[Tensor, "n 3 h w"]:
    """CLIP's preprocessing of frames in [-1, 1]: resize the shorter side, crop the central square, normalise."""
    return normalise(centre_crop(resize_shorter_side(to_pixels(frames), side), side))


def aggregate_frames(scores: Float[Tensor, "b f"], aggregate: str = "mean") -> Float[Tensor, "b"]:
    """Aggregate frame scores into one score per video.

    Args:
        aggregate: "mean"; "min", the worst frame; or "segments", weights exp(-|g - F/2|) for segment g of F, largest in
            the middle of the clip (InstructVideo, arXiv 2312.12490, section 3.3).

    Raises:
        ValueError: `aggregate` is unknown.
    """
    if aggregate == "mean":
        return scores.mean(1)
    if aggregate == "min":
        return scores.amin(1)
    if aggregate == "segments":
        g = torch.arange(scores.shape[1], device=scores.device)
        weights = torch.exp(-(g - scores.shape[1] / 2).abs())
        return (scores * weights).sum(1) / weights.sum()
    raise ValueError(f"aggregate is {aggregate!r}; expected 'mean', 'min' or 'segments'")
