"""PickScore: which of two pictures of a prompt people would pick (Kirstain et al., arXiv 2305.01569, equation 1).

exp(logit scale) cos(image, text) of a CLIP ViT-H/14 fine-tuned on the choices of Pick-a-Pic's users. Only differences
between pictures of one prompt mean something: by 1 more, a picture is chosen e times as often.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from besttake.rewards.networks.image_critic import CLIP_H, ClipCritic, clip_folder, hub_view, read_clip, read_tokenizer
from besttake.types import CriticCard

SOURCE = "yuvalkirstain/PickScore_v1"


def load(path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean") -> PickScore:
    """The critic of a folder or hub id in transformers' layout.

    Raises:
        ValueError: there are no such files, or they are broken.
    """
    folder = clip_folder(PickScore.name, path or SOURCE)
    network = read_clip(PickScore.name, folder, device)
    return PickScore(network, read_tokenizer(PickScore.name, folder, CLIP_H), frames, aggregate)


class PickScore(ClipCritic):
    """A `Reward`, of what models make mostly 17 to 24."""

    name = "pickscore"
    dimensions = ("preference",)
    card = CriticCard(
        "Pick-a-Pic, arXiv 2305.01569; yuvalkirstain/PickScore_v1",
        "MIT",
        {"preference": (17.0, 24.0)},
        resolution="shorter side 224, middle square",
        memory=3.9,
    )

    def view(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 side side"]:
        return hub_view(frames, self.side)

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        return self.network.logit_scale.exp() * self.cosine(frames, prompts)
