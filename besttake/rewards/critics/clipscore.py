"""CLIPScore: agreement of a frame with its prompt.

2.5 max(cos(image, text), 0), the formula of Hessel et al. (arXiv 2104.08718, equation 1). As in most papers on
generation, it uses CLIP ViT-L/14 instead of B/32, and the prompt without the prefix "A photo depicts". Other tools
report 100 max(cos, 0), which is 40 times this score. The gradient is 0 where the cosine is negative, which happens
only if picture and prompt have nothing in common.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from besttake.rewards.frames import clip_preprocess
from besttake.rewards.networks.image_critic import ClipCritic, clip_folder, read_clip, read_tokenizer
from besttake.types import CriticCard

SOURCE = "openai/clip-vit-large-patch14"
WEIGHT = 2.5


def load(path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean") -> ClipScore:
    """Load the critic with any CLIP in transformers' layout, such as the paper's `openai/clip-vit-base-patch32`.

    Raises:
        ValueError: a file is missing or broken.
    """
    folder = clip_folder(ClipScore.name, path or SOURCE)
    network = read_clip(ClipScore.name, folder, device)
    return ClipScore(network, read_tokenizer(ClipScore.name, folder, SOURCE), frames, aggregate)


class ClipScore(ClipCritic):
    """A `Reward` in [0, 2.5], in practice 0.4 to 0.9."""

    name = "clipscore"
    dimensions = ("text alignment",)
    card = CriticCard(
        "CLIPScore, arXiv 2104.08718; openai/clip-vit-large-patch14",
        "MIT",
        {"text alignment": (0.4, 0.9)},
        resolution="shorter side 224, middle square",
        memory=1.7,
    )

    def preprocess(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 side side"]:
        return clip_preprocess(frames, self.side)

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        return WEIGHT * self.cosine(frames, prompts).clamp(min=0)
