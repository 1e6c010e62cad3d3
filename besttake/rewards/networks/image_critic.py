"""Base of the image critics, which score single frames of a clip, and loading of published CLIP models.

An image critic ignores motion: its score of a clip aggregates the scores of `frames` evenly spaced frames. Scores are
differentiable with respect to the pixels, through the resizing.
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

from besttake.rewards.frames import (
    CLIP_MEAN,
    CLIP_STD,
    aggregate_frames,
    even_frames,
    normalise,
    resize_shorter_side,
    to_pixels,
)
from besttake.rewards.networks.weights import READ_ERRORS, find_checkpoint, load_weights, read_json, read_tensors
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json")

Made = TypeVar("Made")

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Hub id of the base model, and tokenizer, of PickScore, HPSv2.1 and MPS."""


class ImageCritic(ABC):
    """A `Reward` that scores single frames.

    Args:
        frames: number of frames to score; all frames of a shorter clip.
        aggregate: "mean", "min" or "segments"; see `frames.aggregate_frames`.

    Raises:
        ValueError: `aggregate` is unknown, or `frames` is below 1.
    """

    name: str
    dimensions: tuple[str, ...]
    differentiable = True
    card: CriticCard

    def __init__(self, network: nn.Module, frames: int = 8, aggregate: str = "mean"):
        if frames < 1:
            raise ValueError(f"critic {self.name}: frames is {frames}, expected 1 or more")
        try:
            aggregate_frames(torch.zeros(1, 1), aggregate)
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
        chosen_frames = videos[:, self.chosen(videos.shape[1], fps)]
        scores = self.score(chosen_frames.to(self.device), prompts)
        return Score(aggregate_frames(scores.float(), self.aggregate)[:, None], self.dimensions)

    def chosen(self, frames: int, fps: float) -> list[int]:
        """Indices of the frames it uses; all frames, if only those are passed."""
        return even_frames(frames, min(self.frames, frames))

    @property
    def identity(self) -> str:
        """Settings that affect scores, for the score cache."""
        return f"{self.frames} frames, {self.aggregate}"

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @abstractmethod
    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        """The score of each frame, in [-1, 1], for its video's prompt."""


class ClipCritic(ImageCritic):
    """An image critic based on the cosine between frame and prompt embeddings."""

    network: Any  # a CLIPModel, whose typed config may be anything

    def __init__(self, network: CLIPModel, tokenizer: CLIPTokenizer, frames: int = 8, aggregate: str = "mean"):
        super().__init__(network, frames, aggregate)
        self.tokenizer = tokenizer

    @property
    def side(self) -> int:
        return self.network.config.vision_config.image_size

    @abstractmethod
    def preprocess(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 side side"]:
        """The network's preprocessing of frames in [-1, 1]."""

    def cosine(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        """The cosine of each frame with its prompt, in [-1, 1]."""
        ids = token_ids(self.tokenizer, prompts, self.network.config.text_config.max_position_embeddings)
        text = self.network.get_text_features(ids.to(self.device)).pooler_output
        image = self.network.get_image_features(self.preprocess(frames.flatten(0, 1))).pooler_output
        text, image = text / text.norm(dim=-1, keepdim=True), image / image.norm(dim=-1, keepdim=True)
        return (image.unflatten(0, frames.shape[:2]) * text[:, None]).sum(-1)


def token_ids(
    tokenizer: CLIPTokenizer, prompts: list[str], max_length: int, pad_to_max: bool = False
) -> Int[Tensor, "b n"]:
    """Token ids of prompts, truncated to `max_length`, padded to the longest prompt (or to `max_length`)."""
    padding = "max_length" if pad_to_max else True
    return tokenizer(prompts, padding=padding, truncation=True, max_length=max_length, return_tensors="pt").input_ids


def hf_clip_preprocess(frames: Float[Tensor, "n 3 h w"], side: int) -> Float[Tensor, "n 3 side side"]:
    """The preprocessing of transformers' CLIP processor for frames in [-1, 1].

    It differs from torchvision's (`frames.clip_preprocess`) in the rounding of the crop's position.
    """
    frames = resize_shorter_side(to_pixels(frames), side)
    top, left = ((length - side) // 2 for length in frames.shape[-2:])
    return normalise(frames[..., top : top + side, left : left + side], CLIP_MEAN, CLIP_STD)


def rating_head(width: int) -> nn.Sequential:
    """Five linear layers without activations: the head of the aesthetic predictor and of ImageReward."""
    a, b, c, d, e = (nn.Linear(n, m) for n, m in pairwise((width, 1024, 128, 64, 16, 1)))
    dropout = nn.Identity  # placeholder, so that the weights keep their published names
    return nn.Sequential(a, dropout(), b, dropout(), c, dropout(), d, e)


def clip_folder(critic: str, source: str | Path) -> Path:
    """The local folder of a CLIP in transformers' layout, downloaded if it is a hub id; ValueError if there is none."""
    files = "config.json", *TOKENIZER_FILES
    folder = find_checkpoint(critic, source, *files, "model*.safetensors")
    if any(folder.glob("*.safetensors")):
        return folder
    return find_checkpoint(critic, source, *files, "pytorch_model*.bin")  # older repositories have no safetensors


def read_config(critic: str, folder: Path) -> Any:
    """Read a CLIP's `config.json`; ValueError if it is another model's."""
    config = read_json(critic, folder / "config.json")
    return build_from_files(critic, lambda: CLIPConfig.from_dict(config), f"{folder / 'config.json'} is not CLIP's")


def read_clip(critic: str, folder: Path, device: str) -> CLIPModel:
    """Load a CLIP in transformers' layout; ValueError if the folder has none."""
    config = read_config(critic, folder)
    network: Any = empty_network(critic, lambda: CLIPModel(config))
    load_weights(critic, network, read_tensors(critic, folder), skip_position_ids, device=device)
    return network.to(device)


def skip_position_ids(name: str) -> str | None:
    """Skip the position ids of older checkpoints."""
    return None if name.endswith("position_ids") else name


def read_tokenizer(critic: str, folder: Path, fallback: str, kind: Any = CLIPTokenizer) -> Any:
    """Load the tokenizer of a folder, or of the hub id `fallback` if the folder has none; ValueError if broken."""
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "vocab.txt")):
        folder = find_checkpoint(critic, fallback, *TOKENIZER_FILES)
    return build_from_files(critic, lambda: kind.from_pretrained(folder), f"the tokenizer in {folder} cannot be read")


def empty_network(critic: str, make: Callable[[], Made]) -> Made:
    """Build a network with parameters on the meta device; ValueError if its configuration is invalid."""
    with init_empty_weights():  # but real buffers: position ids are in no checkpoint
        return build_from_files(critic, make, "its configuration is invalid")


def build_from_files(critic: str, make: Callable[[], Made], fallback: str) -> Made:
    """Call `make`, which reads a user's files; errors become a ValueError with the message `fallback`."""
    try:
        return make()
    except (*READ_ERRORS, StrictDataclassError, AttributeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f"critic {critic}: {fallback}: {error}") from error
