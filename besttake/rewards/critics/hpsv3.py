"""HPSv3: human preference for an image given its prompt, by Qwen2-VL-7B, averaged over some frames of a clip.

Ma et al., "HPSv3: Towards Wide-Spectrum Human Preference Score", arXiv 2508.03789; github.com/MizzenAI/HPSv3. An image
is followed by a question that quotes the prompt. At a special token, a small head predicts mean and uncertainty of the
preference; it was trained on pairs, like RankNet. The score is the mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2VLConfig

from besttake.rewards.frames import normalise, resize_like_pillow, to_pixels
from besttake.rewards.networks.image_critic import ImageCritic, empty_network
from besttake.rewards.networks.qwen2vl import (
    TEMPORAL_PATCH,
    Qwen2VLReward,
    chat_ids,
    grid_size,
    network_name,
    read_config,
    to_patches,
    token_count,
)
from besttake.rewards.networks.vlm import check_prompts, dtype_of, find_folder, read_tokenizer
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_json, read_tensors
from besttake.types import CriticCard

SOURCE = "MizzenAI/HPSv3"
"""Hub id."""
BASE = "Qwen/Qwen2-VL-7B-Instruct"
"""Base model, from which configuration and tokenizer are loaded."""
WEIGHTS = "HPSv3.safetensors"

REWARD_TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
"""Approximate number of pixels to which every image is resized."""

QUESTION = (
    "\nYou are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall "
    "score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being "
    "the best. \n\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal "
    "body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to "
    "interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements "
    "(e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, "
    "composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of "
    "harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult "
    "material. If such content is present, the image quality and satisfaction score should be the lowest possible. \n\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align "
    "with the textual description. The subject should match the description in terms of number, appearance, and "
    "behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the "
    "image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image "
    "logically fit the scenario described in the prompt. The environment should support and enhance the subject "
    "without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, "
    "accessories, expressions, actions) are faithfully represented in the image. Minor deviations may be acceptable, "
    "but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the "
    "image. The generated content should not introduce elements that conflict with or distort the original "
    "description.\n"
    "Textual prompt - {prompt}\n\n\n"
    f"\nPlease provide the overall ratings of this image: {REWARD_TOKEN}\n\nEND\n"
)
"""The exact training prompt, trailing blanks included."""


def load(path: str | Path | None = None, device: str = "cpu", frames: int = 8, aggregate: str = "mean") -> HPSv3:
    """Load the critic from a folder or hub id with `HPSv3.safetensors`.

    If the folder has no tokenizer or config, those of Qwen/Qwen2-VL-7B-Instruct are used.

    Raises:
        ValueError: a file is missing or broken.
    """
    name = HPSv3.name
    folder = find_checkpoint(name, path or SOURCE, WEIGHTS)
    tokenizer = read_tokenizer(name, find_folder(name, "tokenizer.json", [folder], BASE))
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    config = read_json(name, find_folder(name, "config.json", [folder], BASE) / "config.json")
    weights = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder
    state = {new: weight for old, weight in read_tensors(name, weights) if (new := network_name(old))}
    token = tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
    network = empty_network(name, lambda: HPSv3Network(read_config(name, config, state, tokenizer), token))
    load_weights(name, network, state, dtype=dtype_of(name, config), device=device)
    head = {key.removeprefix("rm_head."): weight for key, weight in state.items() if key.startswith("rm_head.")}
    load_weights(name, network.rm_head, head, device=device)  # again, as float32: the head computes in float32
    return HPSv3(network.to(device), tokenizer, frames, aggregate)


class HPSv3(ImageCritic):
    """A `Reward` from about -5 to 15; good pictures score above 5."""

    name = "hpsv3"
    dimensions = ("preference",)
    card = CriticCard(
        "arXiv 2508.03789; huggingface.co/MizzenAI/HPSv3",
        "MIT; Qwen2-VL Apache-2.0",
        {"preference": (-5.0, 15.0)},
        resolution="about 200704 pixels (448 x 448), aspect ratio kept approximately",
        memory=15.5,
    )
    network: HPSv3Network

    def __init__(self, network: HPSv3Network, tokenizer: Any, frames: int = 8, aggregate: str = "mean"):
        super().__init__(network, frames, aggregate)
        self.tokenizer = tokenizer

    def score(self, frames: Float[Tensor, "b f 3 h w"], prompts: list[str]) -> Float[Tensor, "b f"]:
        """
        Raises:
            ValueError: a prompt contains a special token such as "<|Reward|>".
        """
        check_prompts(self.name, prompts, self.tokenizer)
        return torch.stack([self._score(images, prompt) for images, prompt in zip(frames, prompts, strict=True)])

    def _score(self, images: Float[Tensor, "f 3 h w"], prompt: str) -> Float[Tensor, "f"]:
        pixel_values, grid_thw = self.preprocess(images)
        ids = chat_ids(self.tokenizer, QUESTION.format(prompt=prompt), "image", token_count(grid_thw[:1]))
        return self.network(ids.to(self.device).expand(len(images), -1), pixel_values, grid_thw)[:, 0]

    def preprocess(self, images: Float[Tensor, "f 3 h w"]) -> tuple[Float[Tensor, "p 1176"], Int[Tensor, "f 3"]]:
        """Images in [-1, 1] as concatenated patches, and each image's number of patches in time, height and width."""
        height, width = images.shape[-2:]
        size = grid_size(self.name, height, width, PIXELS, PIXELS)
        prepared = normalise(resize_like_pillow(to_pixels(images), size))
        pixel_values, grid = to_patches(
            prepared.repeat_interleave(TEMPORAL_PATCH, 0)
        )  # an image counts as a video of two frames
        return pixel_values, torch.cat([torch.ones_like(grid[:, :1]), grid[:, 1:]], 1).expand(len(images), -1)


class HPSv3Network(Qwen2VLReward):
    """Qwen2-VL with a float32 head on the special token."""

    def __init__(self, config: Qwen2VLConfig, special: int):
        width = config.get_text_config().hidden_size
        super().__init__(
            config,
            nn.Sequential(
                nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
            ),
        )
        self.special = special

    def forward(
        self,
        ids: Int[Tensor, "b n"],
        pixel_values: Float[Tensor, "p 1176"],
        grid_thw: Int[Tensor, "b 3"],
        mask: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b 2"]:
        """Mean and uncertainty of the preference for the images in `pixel_values`."""
        hidden = self.hidden(ids, pixel_values, grid_thw, "image", mask)
        return self.rm_head(hidden[ids == self.special].float())
