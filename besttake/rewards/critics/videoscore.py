"""VideoScore and VideoScore v1.1: five dimensions of a clip, by regression on Idefics2-8B.

He et al., "VideoScore: Building Automatic Metrics to Simulate Fine-grained Human Feedback for Video Generation",
arXiv 2406.15252; github.com/TIGER-AI-Lab/VideoScore. A fixed question that quotes the prompt is followed by up to 16
frames (v1.1: 48) as images; a linear layer predicts the five scores at the last token.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Idefics2Config, Idefics2Model

from besttake.rewards.frames import normalise, resize_like_pillow, to_pixels
from besttake.rewards.networks.image_critic import build_from_files, empty_network
from besttake.rewards.networks.vlm import TEXT_FILES, check_prompts, dtype_of, last_token_index, read_tokenizer
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_json, read_tensors
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

SOURCE = "TIGER-Lab/VideoScore"
"""Hub id; the other version is TIGER-Lab/VideoScore-v1.1."""

SIDES = 378, 980
"""Smallest shorter side and largest longer side of a frame, in pixels."""

DIMENSIONS = (
    "visual quality",
    "temporal consistency",
    "dynamic degree",
    "text-to-video alignment",
    "factual consistency",
)

QUESTION = (
    "\nSuppose you are an expert in judging and evaluating the quality of AI-generated videos,\n"
    "please watch the following frames of a given video and see the text prompt for generating the video,\n"
    "then give scores from 5 different dimensions:\n"
    "(1) visual quality: the quality of the video in terms of clearness, resolution, brightness, and color\n"
    "(2) temporal consistency, both the consistency of objects or humans and the smoothness of motion or movements\n"
    "(3) dynamic degree, the degree of dynamic changes\n"
    "(4) text-to-video alignment, the alignment between the text prompt and the video content\n"
    "(5) factual consistency, the consistency of the video content with the common-sense and factual knowledge\n"
    "\nfor each dimension, output a float number from 1.0 to 4.0,\n"
    "the higher the number is, the better the video performs in that sub-score, \n"
    "the lowest 1.0 means Bad, the highest 4.0 means Perfect/Real (the video is like a real video)\n"
    "Here is an output example:\n"
    "visual quality: 3.2\n"
    "temporal consistency: 2.7\n"
    "dynamic degree: 4.0\n"
    "text-to-video alignment: 2.3\n"
    "factual consistency: 1.8\n"
    '\nFor this video, the text prompt is "{prompt}",\n'
    "all the frames of video are as follows:\n"
)
"""The exact training prompt, trailing blanks included."""


def load(path: str | Path | None = None, device: str = "cpu") -> VideoScore:
    """Load the critic from a folder or hub id in transformers' layout: config, preprocessor config, tokenizer, weights.

    It is v1.1 if "v1.1" is in the path, or in `_name_or_path` of its configuration.

    Raises:
        ValueError: a file is missing or broken.
    """
    name, source = VideoScore.name, path or SOURCE
    folder = find_checkpoint(name, source, *TEXT_FILES, "*.safetensors")
    raw = read_json(name, folder / "config.json")
    config = build_from_files(
        name, lambda: Idefics2Config.from_dict(raw), f"{folder / 'config.json'} is not one of Idefics2"
    )
    pad = raw.get("pad_token_id", config.get_text_config().pad_token_id)
    network = empty_network(name, lambda: VideoScoreNetwork(config, pad))
    load_weights(name, network, read_tensors(name, folder), _renamed, dtype_of(name, raw), device)
    sides = _sides(folder)
    v11 = any("v1.1" in str(place) for place in (source, raw.get("_name_or_path")))
    return VideoScore(network.to(device), read_tokenizer(name, folder), sides, v11)


class VideoScore:
    """A `Reward` with five dimensions, each from about 1 to 4.

    Args:
        sides: smallest shorter side and largest longer side of a frame, in pixels.
        v11: whether it is VideoScore v1.1.
    """

    name = "videoscore"
    dimensions = DIMENSIONS
    differentiable = True
    card = CriticCard(
        "arXiv 2406.15252; huggingface.co/TIGER-Lab/VideoScore",
        "Apache-2.0",
        dict.fromkeys(DIMENSIONS, (1.0, 4.0)),
        frames=16,
        resolution="shorter side 378 or more, longer side 980 or less",
        memory=16.5,
    )

    def __init__(self, network: VideoScoreNetwork, tokenizer: Any, sides: tuple[int, int] = SIDES, v11=False):
        self.network, self.tokenizer, self.sides = network, tokenizer, sides
        if v11:
            source = "arXiv 2406.15252; huggingface.co/TIGER-Lab/VideoScore-v1.1"
            self.name, self.card = "videoscore-v1.1", replace(self.card, source=source, licence="MIT", frames=48)

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with two frames or more, the prompts are not `b`, or one of them
                contains a token such as "<image>".
        """
        check_videos(self.name, videos, prompts)
        check_prompts(self.name, prompts, self.tokenizer)
        indices = self.chosen(videos.shape[1], fps)
        scores = [self._score(video[indices], prompt) for video, prompt in zip(videos, prompts, strict=True)]
        return Score(torch.stack(scores).float(), self.dimensions)

    @property
    def identity(self) -> str:
        """Settings that affect scores, for the score cache."""
        return f"{self.name}, frames of {self.sides} pixels"

    def chosen(self, frames: int, fps: float) -> list[int]:
        """Indices of the frames it uses; all frames, if only those are passed."""
        return sample_frames(frames, self.card.frames)

    def _score(self, frames: Float[Tensor, "f 3 h w"], prompt: str) -> Float[Tensor, "5"]:
        device = self.network.score.weight.device
        ids = self.ids(prompt, len(frames)).to(device)
        return self.network(ids, self.preprocess(frames.to(device))[None])[0]

    def preprocess(self, frames: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 3 height width"]:
        """Idefics2's preprocessing of frames in [-1, 1], without splitting them into four."""
        height, width = frames.shape[-2:]
        size = frame_size(height, width, *self.sides)
        return normalise(resize_like_pillow(to_pixels(frames), size, "bilinear"), (0.5,) * 3, (0.5,) * 3)

    def ids(self, prompt: str, frames: int) -> Int[Tensor, "1 n"]:
        """Token ids of the question and the frames' placeholders."""
        border, place = "<fake_token_around_image>", "<image>" * self.network.places
        return self.tokenizer(
            QUESTION.format(prompt=prompt) + f"{border}{place}{border} " * frames, return_tensors="pt"
        ).input_ids


class VideoScoreNetwork(nn.Module):
    """Idefics2 with a linear head on the last token before the padding.

    Args:
        pad: id of the pad token; None = no padding.
    """

    def __init__(self, config: Idefics2Config, pad: int | None = 0):
        super().__init__()
        self.model = Idefics2Model(config)
        self.score = nn.Linear(config.get_text_config().hidden_size, len(DIMENSIONS))
        self.pad = pad
        self.places = self.model.image_seq_len

    def forward(
        self,
        ids: Int[Tensor, "b n"],
        pixel_values: Float[Tensor, "b f 3 h w"],
        mask: Int[Tensor, "b n"] | None = None,
        pixel_mask: Int[Tensor, "b f h w"] | None = None,
    ) -> Float[Tensor, "b 5"]:
        """
        Args:
            pixel_values: normalised frames; all-zero frames are padding.
            mask: 1 for tokens, 0 for padding; None = no padding.
            pixel_mask: likewise for the pixels of `pixel_values`.
        """
        pixel_mask = None if pixel_mask is None else pixel_mask.bool()
        hidden = self.model(ids, mask, pixel_values=pixel_values, pixel_attention_mask=pixel_mask, use_cache=False)
        rows = torch.arange(len(ids), device=ids.device)
        return self.score(hidden.last_hidden_state[rows, last_token_index(ids, self.pad)])


def sample_frames(frames: int, most: int | None) -> list[int]:
    """Indices of at most `most` evenly spaced frames, starting with the first."""
    if most is None or frames <= most:
        return list(range(frames))
    return [int(k * (frames / most)) for k in range(most)]


def frame_size(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Idefics2's frame size: the longer side shrunk to `most`, then each side enlarged to at least `least`."""
    shape = width / height
    if width >= height and width > most:
        height, width = int(most / shape), most
    elif height > width and height > most:
        height, width = most, int(most * shape)
    return max(height, least), max(width, least)


def _sides(folder: Path) -> tuple[int, int]:
    """The checkpoint's image sides; Idefics2's default if it has none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return SIDES
    size = read_json(VideoScore.name, path).get("size") or {}
    return build_from_files(
        VideoScore.name,
        lambda: (int(size["shortest_edge"]), int(size["longest_edge"])),
        f"{path} has size {size}, expected shortest_edge and longest_edge",
    )


def _renamed(name: str) -> str | None:
    """Skip Idefics2's language head, which is not used."""
    return None if name.startswith("lm_head.") else name
