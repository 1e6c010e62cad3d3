"""PickScore: human choice between two images of a prompt (Kirstain et al., arXiv 2305.01569, equation 1).

exp(logit scale) cos(image, text) of a CLIP ViT-H/14 fine-tuned on Pick-a-Pic. Only differences between images of one
prompt are meaningful: a score higher by 1 means e times the odds of being chosen.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from besttake.rewards.networks.image_critic import (
    CLIP_H,
    ClipCritic,
    clip_folder,
    hf_clip_preprocess,
    read_clip,
    read_tokenizer,
)
from besttake.types import CriticCard

SOURCE = "yuvalkirstain/PickScore_v1"


def load(path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean") -> PickScore:
    """Load the critic from a folder or hub id in transformers' layout.

    Raises:
        ValueError: a file is missing or broken.
    """
    folder = clip_folder(PickScore.name, path or SOURCE)
    network = read_clip(PickScore.name, folder, device)
    return PickScore(network, read_tokenizer(PickScore.name, folder, CLIP_H), frames, aggregate)


class PickScore(ClipCritic):
    """A `Reward`; generated videos mostly score 17 to 24."""

    name = "pickscore"
    dimensions = ("preference",)
    card = CriticCard(
        "Pick-a-Pic, arXiv 2305.01569; yuvalkirstain/PickScore_v1",
        "MIT",
        {"preference": (17.0, 24.0)},
        resolution="shorter side 224, middle square",
        memory=3.9,
    )

    def preprocess(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 side side"]:
        return hf_clip_preprocess(frames, self.side)

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        return self.network.logit_scale.exp() * self.cosine(frames, prompts)
