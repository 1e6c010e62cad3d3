"""The names of what crosses a border between packages: videos, latents, times, conditions, scores.

Conventions, everywhere in the library: a video is float `b f c h w` in [-1, 1]; latents are `b c f h w`; diffusion
time is a float in [0, 1] with 0 = data and 1 = noise. Files hold uint8 `f h w c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

Video = Float[Tensor, "b f c h w"]
"""Videos in [-1, 1]."""

Latent = Float[Tensor, "b c f h w"]
"""What the denoiser works on."""

Time = Float[Tensor, "b"]
"""Diffusion time: 0 = data, 1 = noise."""

Condition = dict[str, Tensor]
"""Inputs of a denoiser besides latents and time: named tensors whose first axis is the batch (text embeddings, ...)."""


class Prompt(str):
    """A prompt, with what else the model is shown beside the text. Wherever only text is wanted, it is that text.

    Attributes:
        first_frame: an image, or a video whose first frame is used (image-to-video).
        source: a source video (video-to-video).
    """

    first_frame: Path | None
    source: Path | None

    def __new__(cls, text: str, first_frame: Path | None = None, source: Path | None = None) -> Prompt:
        prompt = super().__new__(cls, text)
        prompt.first_frame, prompt.source = first_frame, source
        return prompt

    def __getnewargs__(self):
        return str(self), self.first_frame, self.source


@dataclass(frozen=True)
class Score:
    """What a critic says of `b` videos.

    Attributes:
        values: float32 (b, d), finite; higher is better in every dimension.
        dimensions: the names of the d columns.
    """

    values: Float[Tensor, "b d"]
    dimensions: tuple[str, ...]

    def __getitem__(self, dimension: str) -> Float[Tensor, "b"]:
        return self.values[:, self.dimensions.index(dimension)]

    def combine(self, weights: Mapping[str, float]) -> Float[Tensor, "b"]:
        """The weighted sum of the dimensions named in `weights`."""
        return torch.stack([weight * self[dimension] for dimension, weight in weights.items()]).sum(0)


@dataclass(frozen=True)
class CriticCard:
    """What a critic is, for whoever chooses one.

    Attributes:
        source: its paper, and where its weights are from.
        licence: of the weights.
        ranges: dimension -> (lowest, highest) score to expect; higher is better in every dimension.
        frames: the most frames of a clip that it looks at; None = all.
        frame_rate: frames a second that it looks at; None = spread evenly over the clip.
        resolution: what it sees of a frame, in words.
        memory: GB of its weights at the published size, as it is loaded.
    """

    source: str
    licence: str
    ranges: Mapping[str, tuple[float, float]]
    frames: int | None = None
    frame_rate: float | None = None
    resolution: str = "as it is"
    memory: float = 0.0


FPS = 8.0
"""Default frame rate of a clip whose rate is unknown."""


class Reward(Protocol):
    """A critic: videos and their prompts in, a score out. Local, in another process or over HTTP: the same call.

    Attributes:
        differentiable: whether a gradient flows from the score to the videos.
    """

    name: str
    dimensions: tuple[str, ...]
    differentiable: bool
    card: CriticCard

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score: ...
