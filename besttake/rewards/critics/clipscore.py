"""CLIPScore: how much a frame looks like what its prompt says.

2.5 max(cos(image, text), 0), the formula of Hessel et al. (arXiv 2104.08718, equation 1), with two habits of the papers
on generation rather than of that one: CLIP ViT-L/14 in place of B/32, and the prompt as it is, with no "A photo
depicts" before it. Other tools print 100 max(cos, 0): that is 40 times this. No gradient flows where the cosine is
negative, which happens between a picture and a prompt of something else altogether.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from besttake.rewards.frames import clip_view
from besttake.rewards.networks.image_critic import ClipCritic, clip_folder, read_clip, read_tokenizer
from besttake.types import CriticCard

SOURCE = "openai/clip-vit-large-patch14"
WEIGHT = 2.5


def load(path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean") -> ClipScore:
    """The critic of any CLIP in transformers' layout, such as `openai/clip-vit-base-patch32`, the paper's.

    Raises:
        ValueError: there are no such files, or they are broken.
    """
    folder = clip_folder(ClipScore.name, path or SOURCE)
    network = read_clip(ClipScore.name, folder, device)
    return ClipScore(network, read_tokenizer(ClipScore.name, folder, SOURCE), frames, aggregate)


class ClipScore(ClipCritic):
    """A `Reward` from 0 to 2.5, in practice 0.4 to 0.9."""

    name = "clipscore"
    dimensions = ("text alignment",)
    card = CriticCard(
        "CLIPScore, arXiv 2104.08718; openai/clip-vit-large-patch14",
        "MIT",
        {"text alignment": (0.4, 0.9)},
        resolution="shorter side 224, middle square",
        memory=1.7,
    )

    def view(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 side side"]:
        return clip_view(frames, self.side)

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        return WEIGHT * self.cosine(frames, prompts).clamp(min=0)
