"""LAION's aesthetic predictor: human ratings of a frame, without its prompt.

Five linear layers without activations on the normalised image embedding of CLIP ViT-L/14, trained on
ratings from 1 to 10 of SAC, LAION-Logos and AVA (Schuhmann et al., LAION-5B, arXiv 2210.08402;
github.com/christophschuhmann/improved-aesthetic-predictor). VBench's aesthetic quality uses another, linear, head. The
prompts are ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from besttake.rewards.frames import clip_preprocess
from besttake.rewards.networks.image_critic import ImageCritic, clip_folder, empty_network, rating_head, read_config
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_tensors
from besttake.types import CriticCard

SOURCE = "camenduru/improved-aesthetic-predictor"
"""Hub id with a copy of the GitHub repository's weights."""
HEAD = "sac+logos+ava1-l14-linearMSE"
CLIP = "clip-vit-large-patch14"


def load(
    path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean"
) -> AestheticCritic:
    """Load the critic from a folder or hub id with the head, `sac+logos+ava1-l14-linearMSE.pth` or `.safetensors`.

    CLIP is loaded from the folder's subfolder `clip-vit-large-patch14`, or from the hub (`openai/...`).

    Raises:
        ValueError: a file is missing or broken.
    """
    name = AestheticCritic.name
    folder = find_checkpoint(name, path or SOURCE, f"{HEAD}.*")
    file = folder / f"{HEAD}.safetensors"
    file = file if file.is_file() else folder / f"{HEAD}.pth"
    if not file.is_file():
        raise ValueError(f"critic {name}: there is no {HEAD}.pth in {folder}; give a folder with that file of {SOURCE}")
    clip = clip_folder(name, folder / CLIP if (folder / CLIP).is_dir() else f"openai/{CLIP}")
    config = read_config(name, clip)
    vision = empty_network(name, lambda: CLIPVisionModelWithProjection(_vision_config(config)))
    load_weights(name, vision, read_tensors(name, clip), _of_vision, device=device)
    network = empty_network(name, lambda: AestheticNetwork(vision))
    load_weights(name, network.layers, read_tensors(name, file), lambda key: key.removeprefix("layers."), device=device)
    return AestheticCritic(network.to(device), frames, aggregate)


class AestheticCritic(ImageCritic):
    """A `Reward` with ratings from about 1 to 10; generated videos mostly score 4 to 7."""

    name = "aesthetic"
    dimensions = ("aesthetic",)
    card = CriticCard(
        "LAION-5B, arXiv 2210.08402; github.com/christophschuhmann/improved-aesthetic-predictor",
        "Apache-2.0; CLIP MIT",
        {"aesthetic": (1.0, 10.0)},
        resolution="shorter side 224, middle square",
        memory=1.2,
    )
    network: AestheticNetwork

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        pixel_values = clip_preprocess(frames.flatten(0, 1), self.network.vision.config.image_size)
        return self.network(pixel_values).unflatten(0, frames.shape[:2])


class AestheticNetwork(nn.Module):
    def __init__(self, vision: CLIPVisionModelWithProjection):
        super().__init__()
        self.vision: Any = vision
        self.layers = rating_head(vision.config.projection_dim)

    def forward(self, pixel_values: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n"]:
        return self.rate(self.vision(pixel_values).image_embeds)

    def rate(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Ratings of CLIP's image embeddings, of any length; one of length 0 stays 0."""
        length = embedding.norm(dim=-1, keepdim=True)
        return self.layers(embedding / length.where(length > 0, 1)).squeeze(-1)


def _vision_config(config: CLIPConfig) -> CLIPVisionConfig:
    vision: Any = config.vision_config
    vision.projection_dim = config.projection_dim
    return vision


def _of_vision(name: str) -> str | None:
    """Names of CLIP's vision weights; None for the text weights."""
    is_vision = name.startswith(("vision_model.", "visual_projection.")) and not name.endswith("position_ids")
    return name if is_vision else None
