"""What the image critics share: some frames of a clip, each scored by itself, and CLIP as it was published.

An image critic knows nothing of motion: its score of a clip is one number of the scores of `frames` frames, evenly
spread from first to last. Gradients flow from that number to the pixels, through the resizing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from besttake.rewards.frames import CLIP_MEAN, CLIP_STD, evenly, normalised, per_video, pixels, shortest_side
from besttake.rewards.networks.weights import FAULTS, checkpoint, load_weights, read_json, read_tensors
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json")

Made = TypeVar("Made")

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""What PickScore, HPSv2.1 and MPS were trained from; the tokenizer they are used with."""


class ImageCritic(ABC):
    """A `Reward` that looks at single frames.

    Args:
        frames: how many of a clip's frames it looks at; all those of a shorter clip.
        aggregate: "mean", "min" or "segments": see `frames.per_video`.

    Raises:
        ValueError: there is no such way to aggregate, or `frames` is below 1.
    """

    name: str
    dimensions: tuple[str, ...]
    differentiable = True
    card: CriticCard

    def __init__(self, network: nn.Module, frames: int = 8, aggregate: str = "mean"):
        if frames < 1:
            raise ValueError(f"critic {self.name}: frames is {frames}, expected 1 or more")
        try:
            per_video(torch.zeros(1, 1), aggregate)
        except ValueError as error:
            raise ValueError(f"critic {self.name}: {error}") from error
        self.network, self.frames, self.aggregate = network, frames, aggregate
        self.card = replace(self.card, frames=frames)

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w`, or the prompts are not `b`.
        """
        check_videos(self.name, videos, prompts, least_frames=1)
        seen = videos[:, self.chosen(videos.shape[1], fps)]
        scores = self.score(seen.to(self.device), prompts)
        return Score(per_video(scores.float(), self.aggregate)[:, None], self.dimensions)

    def chosen(self, frames: int, fps: float) -> list[int]:
        """The frames of a clip that it looks at; of a clip of these alone, all."""
        return evenly(frames, min(self.frames, frames))

    @property
    def identity(self) -> str:
        """What decides a score besides the weights."""
        return f"{self.frames} frames, {self.aggregate}"

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @abstractmethod
    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        """The score of each frame, in [-1, 1], for its video's prompt."""


class ClipCritic(ImageCritic):
    """An image critic whose score is made of the cosine between a frame and the prompt."""

    network: Any  # a CLIPModel, whose typed config may be anything

    def __init__(self, network: CLIPModel, tokenizer: CLIPTokenizer, frames: int = 8, aggregate: str = "mean"):
        super().__init__(network, frames, aggregate)
        self.tokenizer = tokenizer

    @property
    def side(self) -> int:
        return self.network.config.vision_config.image_size

    @abstractmethod
    def view(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 side side"]:
        """Frames in [-1, 1] as the network was trained to see them."""

    def cosine(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        """The cosine of each frame with its prompt, in [-1, 1]."""
        ids = token_ids(self.tokenizer, prompts, self.network.config.text_config.max_position_embeddings)
        text = self.network.get_text_features(ids.to(self.device)).pooler_output
        image = self.network.get_image_features(self.view(frames.flatten(0, 1))).pooler_output
        text, image = text / text.norm(dim=-1, keepdim=True), image / image.norm(dim=-1, keepdim=True)
        return (image.unflatten(0, frames.shape[:2]) * text[:, None]).sum(-1)


def token_ids(tokenizer: CLIPTokenizer, prompts: list[str], longest: int, full: bool = False) -> Int[Tensor, "b n"]:
    """Prompts as ids, cut to `longest`, padded to the longest of them, or to `longest` if `full`."""
    padding = "max_length" if full else True
    return tokenizer(prompts, padding=padding, truncation=True, max_length=longest, return_tensors="pt").input_ids


def hub_view(frames: Float[Tensor, "n 3 h w"], side: int) -> Float[Tensor, "n 3 side side"]:
    """Frames in [-1, 1] as transformers' CLIP processor gives them.

    It differs from torchvision's, `frames.clip_view`, in how it rounds the place of the middle square.
    """
    frames = shortest_side(pixels(frames), side)
    top, left = ((length - side) // 2 for length in frames.shape[-2:])
    return normalised(frames[..., top : top + side, left : left + side], CLIP_MEAN, CLIP_STD)


def rating_head(width: int) -> nn.Sequential:
    """Five linear layers with nothing between them: the head of the aesthetic predictor, and of ImageReward."""
    a, b, c, d, e = (nn.Linear(n, m) for n, m in pairwise((width, 1024, 128, 64, 16, 1)))
    gap = nn.Identity  # where training had dropout: it counts in the names of the weights
    return nn.Sequential(a, gap(), b, gap(), c, gap(), d, e)


def clip_folder(critic: str, source: str | Path) -> Path:
    """The folder of a CLIP in transformers' layout: itself, or that of the hub's cache. ValueError if there is none."""
    files = "config.json", *TOKENIZER_FILES
    folder = checkpoint(critic, source, *files, "model*.safetensors")
    if any(folder.glob("*.safetensors")):
        return folder
    return checkpoint(critic, source, *files, "pytorch_model*.bin")  # older repositories have no safetensors


def read_config(critic: str, folder: Path) -> Any:
    """ValueError if `folder/config.json` is not that of a CLIP."""
    config = read_json(critic, folder / "config.json")
    return build(critic, lambda: CLIPConfig.from_dict(config), f"{folder / 'config.json'} is not CLIP's")


def read_clip(critic: str, folder: Path, device: str) -> CLIPModel:
    """A CLIP in transformers' layout; ValueError if the folder holds none."""
    config = read_config(critic, folder)
    network: Any = empty(critic, lambda: CLIPModel(config))
    load_weights(critic, network, read_tensors(critic, folder), without_ids, device=device)
    return network.to(device)


def without_ids(name: str) -> str | None:
    """Older checkpoints hold position ids, which nobody needs."""
    return None if name.endswith("position_ids") else name


def read_tokenizer(critic: str, folder: Path, otherwise: str, kind: Any = CLIPTokenizer) -> Any:
    """The tokenizer of a folder, or that of the hub id `otherwise` if the folder has none; ValueError if broken."""
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "vocab.txt")):
        folder = checkpoint(critic, otherwise, *TOKENIZER_FILES)
    return build(critic, lambda: kind.from_pretrained(folder), f"the tokenizer in {folder} cannot be read")


def empty(critic: str, make: Callable[[], Made]) -> Made:
    """A network whose parameters take no memory yet; ValueError if its configuration asks for what cannot be."""
    with init_empty_weights():  # buffers are real: position ids are in no checkpoint
        return build(critic, make, "its configuration makes no network")


def build(critic: str, make: Callable[[], Made], otherwise: str) -> Made:
    """What `make` makes of a user's files; whatever it raises becomes a ValueError that says `otherwise`."""
    try:
        return make()
    except (*FAULTS, StrictDataclassError, AttributeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f"critic {critic}: {otherwise}: {error}") from error
