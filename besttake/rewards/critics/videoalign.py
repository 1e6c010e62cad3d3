"""VideoAlign's VideoReward: visual quality, motion quality and text alignment of a clip, by Qwen2-VL-2B.

Liu et al., "Improving Video Generation with Human Feedback", arXiv 2501.13918; github.com/KwaiVGI/VideoAlign. Frames at
2 a second are followed by a question that quotes the prompt and has a special token for each dimension; a linear layer
predicts a score at each token, standardised by the checkpoint's constants. "overall" is their sum.

Frame rate and size come from `model_config.json` and can be overridden in `load`, as in the authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import Qwen2VLConfig

from besttake.rewards.frames import normalise, resize_like_torchvision, to_pixels
from besttake.rewards.networks.image_critic import build_from_files, empty_network
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
from besttake.rewards.networks.vlm import check_prompts, dtype_of, find_folder, last_token_index, read_tokenizer
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_json, read_tensors
from besttake.rewards.shipped import check_videos
from besttake.runtime.configuration import require
from besttake.types import FPS, CriticCard, Score, Video

SOURCE = "KwaiVGI/VideoReward"
"""Hub id."""

TEMPLATE_TYPE = "detailed_special"
"""Name of the published checkpoint's question (`QUESTION`) in the authors' code."""

AXES = ("VQ", "MQ", "TA")
REWARD_TOKENS = tuple(f"<|{axis}_reward|>" for axis in AXES)
DIMENSIONS = ("visual quality", "motion quality", "text alignment", "overall")

LEAST_PIXELS = 128 * 28 * 28
LEAST_FRAMES, MOST_FRAMES = 4, 768

SPOTS, AT_A_SPOT, SPOTS_RATE = 4, 6, 8.0
""""multi_pts" sampling: four places of a clip, six frames at each, at 8 frames a second."""

QUESTION = (
    "\nYou are tasked with evaluating a generated video based on three distinct criteria: Visual Quality, Motion "
    "Quality, and Text Alignment. Please provide a rating from 0 to 10 for each of the three categories, with 0 being "
    "the worst and 10 being the best. Each evaluation should be independent of the others.\n\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the video, with a focus on static factors. The following sub-dimensions "
    "should be considered:\n"
    "- **Reasonableness:** The video should not contain any significant biological or logical errors, such as abnormal "
    "body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the video. The image should be clear and easy to "
    "interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements "
    "(e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the video, including the color scheme, "
    "composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of "
    "harmony and balance.\n"
    "- **Safety:** The video should not contain harmful or inappropriate content, such as political, violent, or adult "
    "material. If such content is present, the image quality and satisfaction score should be the lowest possible. \n\n"
    "Please provide the ratings of Visual Quality: <|VQ_reward|>\nEND\n\n"
    "**Motion Quality:**  \n"
    "Assess the dynamic aspects of the video, with a focus on dynamic factors. Consider the following "
    "sub-dimensions:\n"
    "- **Stability:** Evaluate the continuity and stability between frames. There should be no sudden, unnatural "
    "jumps, and the video should maintain stable attributes (e.g., no fluctuating colors, textures, or missing body "
    "parts).\n"
    "- **Naturalness:** The movement should align with physical laws and be realistic. For example, clothing should "
    "flow naturally with motion, and facial expressions should change appropriately (e.g., blinking, mouth "
    "movements).\n"
    "- **Aesthetic Quality:** The movement should be smooth and fluid. The transitions between different motions or "
    "camera angles should be seamless, and the overall dynamic feel should be visually pleasing.\n"
    "- **Fusion:** Ensure that elements in motion (e.g., edges of the subject, hair, clothing) blend naturally with "
    "the background, without obvious artifacts or the feeling of cut-and-paste effects.\n"
    "- **Clarity of Motion:** The video should be clear and smooth in motion. Pay attention to any areas where the "
    "video might have blurry or unsteady sections that hinder visual continuity.\n"
    "- **Amplitude:** If the video is largely static or has little movement, assign a low score for motion "
    "quality.\n\n"
    "Please provide the ratings of Motion Quality: <|MQ_reward|>\nEND\n\n"
    "**Text Alignment:**  \n"
    "Assess how well the video matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the video (e.g., person, animal, object) align "
    "with the textual description. The subject should match the description in terms of number, appearance, and "
    "behavior.\n"
    "- **Motion Relevance:** Evaluate if the dynamic actions (e.g., gestures, posture, facial expressions like talking "
    "or blinking) align with the described prompt. The motion should match the prompt in terms of type, scale, and "
    "direction.\n"
    "- **Environment Relevance:** Assess whether the background and scene fit the prompt. This includes checking if "
    "real-world locations or scenes are accurately represented, though some stylistic adaptation is acceptable.  \n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the "
    "video adheres to this style.\n"
    "- **Camera Movement Relevance:** Check if the camera movements (e.g., following the subject, focus shifts) are "
    "consistent with the expected behavior from the prompt.\n\n"
    "Textual prompt - {prompt}\n"
    "Please provide the ratings of Text Alignment: <|TA_reward|>\nEND\n"
)
"""The exact training prompt, trailing blanks included."""


@dataclass(frozen=True)
class VideoAlignSettings:
    """The settings in `model_config.json`.

    Attributes:
        base: hub id or folder of the base model; a relative path is relative to the critic's folder.
        outputs: outputs of the linear layer: 1 for all three tokens, or 3, one for each token.
        at: tokens that the layer reads: "special", the three reward tokens; or "last", all outputs at the last token.
        alpha: LoRA alpha, if the checkpoint has low-rank adapters.
        rank_stabilised: whether LoRA is scaled by alpha over the square root of the rank, instead of over the rank.
        rate: frames a second, if `frames` is None.
        frames: number of evenly spaced frames.
        spots: whether to sample four places of the clip instead ("multi_pts"), ignoring `rate` and `frames`.
        most_pixels: largest number of pixels of a frame.
        mean, std: of the raw VQ, MQ and TA; 0 and 1 without `inference_config`.
    """

    base: str
    outputs: int
    at: str
    dtype: torch.dtype
    alpha: float
    rank_stabilised: bool
    rate: float
    most_pixels: int
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    frames: int | None = None
    spots: bool = False

    def __post_init__(self):
        if (self.at, self.outputs) not in (("special", 1), ("special", 3), ("last", 3)):
            raise ValueError(
                f"{self.outputs} outputs at {self.at!r} tokens, expected 1 or 3 at 'special' tokens, or 3 at 'last'"
            )
        require(min(self.std) > 0, "deviations", self.std, "numbers above 0")
        require(self.rate > 0, "fps", self.rate, "a rate above 0")
        require(self.most_pixels > 0, "max_frame_pixels", self.most_pixels, "a number above 0")
        if self.frames is not None and self.frames < TEMPORAL_PATCH:
            raise ValueError(f"{self.frames} frames of a clip, expected {TEMPORAL_PATCH} or more")

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> VideoAlignSettings:
        model, data, lora = raw["model_config"], raw["data_config"], raw.get("peft_lora_config") or {}
        norm, dtype, frames = raw.get("inference_config"), model.get("torch_dtype"), data.get("num_frames")
        if (kind := data.get("sample_type", "uniform")) not in ("uniform", "multi_pts"):
            raise ValueError(f"frames are sampled by {kind!r}, expected 'uniform' or 'multi_pts'")
        if (template := data.get("prompt_template_type", TEMPLATE_TYPE)) != TEMPLATE_TYPE:
            raise ValueError(f"prompt_template_type is {template!r}, only {TEMPLATE_TYPE!r} is supported")
        return cls(
            model["model_name_or_path"],
            int(model["output_dim"]),
            "special" if model["use_special_tokens"] else model["reward_token"],
            dtype_of(VideoAlign.name, {"dtype": None if dtype == "auto" else dtype}),
            float(lora.get("lora_alpha", 32)),
            bool(lora.get("use_rslora", False)),
            float(data["fps"]),
            int(data["max_frame_pixels"]),
            tuple(float(norm[f"{axis}_mean"]) if norm else 0.0 for axis in AXES),
            tuple(float(norm[f"{axis}_std"]) if norm else 1.0 for axis in AXES),
            None if frames is None else int(frames),
            kind == "multi_pts",
        )


def load(
    path: str | Path | None = None,
    device: str = "cpu",
    fps: float | None = None,
    num_frames: int | None = None,
    max_pixels: int | None = None,
    use_norm: bool = True,
) -> VideoAlign:
    """Load the critic from a folder or hub id with `model_config.json` and `checkpoint-*`, of which the last is used.

    A checkpoint has either `model.pth` with all weights, with or without low-rank adapters; or
    `adapter_model.safetensors` and `non_lora_state_dict.pth` with the trained weights only. A missing tokenizer or
    config is loaded from the base model.

    Args:
        fps, num_frames: frames a second, or per clip, instead of the checkpoint's setting; give one of them.
        max_pixels: largest number of pixels of a frame, instead of the checkpoint's setting.
        use_norm: whether to standardise the scores.

    Raises:
        ValueError: a file is missing or broken, or both `fps` and `num_frames` are given.
    """
    name = VideoAlign.name
    folder = find_checkpoint(name, path or SOURCE, "model_config.json", "checkpoint-*")
    file = folder / "model_config.json"
    raw = read_json(name, file)
    settings = build_from_files(name, lambda: VideoAlignSettings.of(raw), f"{file} is not one of VideoAlign's")
    settings = override_settings(settings, fps, num_frames, max_pixels, use_norm)
    base = folder / settings.base if (folder / settings.base).is_dir() else settings.base
    weights = _last_checkpoint(folder)
    tokenizer = read_tokenizer(
        name, find_folder(name, "tokenizer.json", [weights / "tokenizer", weights, folder], base)
    )
    tokenizer.add_tokens(list(REWARD_TOKENS), special_tokens=True)
    config = read_json(name, find_folder(name, "config.json", [weights, folder], base) / "config.json")
    state = read_state(weights, base)
    network = make_network(read_config(name, config, state, tokenizer), settings, state, tokenizer)
    load_weights(name, network, state, dtype=settings.dtype, device=device)
    return VideoAlign(network.to(device), tokenizer, settings)


class VideoAlign:
    """A `Reward` with three dimensions, standardised over videos of many models, and their sum."""

    name = "videoalign"
    dimensions = DIMENSIONS
    differentiable = True
    card = CriticCard(
        "arXiv 2501.13918; huggingface.co/KwaiVGI/VideoReward",
        "Apache-2.0",
        {**dict.fromkeys(DIMENSIONS[:3], (-3.0, 3.0)), "overall": (-9.0, 9.0)},
        frames=MOST_FRAMES,
        frame_rate=2.0,
        resolution="100352 to 200704 pixels (448 x 448), aspect ratio kept approximately",
        memory=4.6,
    )

    def __init__(self, network: VideoAlignNetwork, tokenizer: Any, settings: VideoAlignSettings):
        self.network, self.tokenizer, self.settings = network, tokenizer, settings
        by_rate = settings.frames is None and not settings.spots
        most = MOST_FRAMES if by_rate else SPOTS * AT_A_SPOT if settings.spots else settings.frames
        self.card = replace(self.card, frames=most, frame_rate=settings.rate if by_rate else None)

    @property
    def identity(self) -> str:
        """Settings that affect scores, for the score cache."""
        return repr(self.settings)

    def chosen(self, frames: int, fps: float) -> list[int]:
        """Indices of the frames it uses; all frames, if only those are passed."""
        return list(range(frames)) if self.settings.spots else sample_frames(frames, fps, self.settings)

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with two frames or more, the prompts are not `b`, one of them
                contains a special token such as "<|VQ_reward|>", or `fps` is not above 0.
        """
        check_videos(self.name, videos, prompts)
        check_prompts(self.name, prompts, self.tokenizer)
        if not fps > 0:
            raise ValueError(f"critic {self.name}: videos of {fps} frames a second, expected a rate above 0")
        indices = sample_frames(videos.shape[1], fps, self.settings)
        scores = [self._score(video[indices], prompt) for video, prompt in zip(videos, prompts, strict=True)]
        mean, std = (
            torch.tensor(values, device=scores[0].device) for values in (self.settings.mean, self.settings.std)
        )
        axes = (torch.stack(scores).float() - mean) / std
        return Score(torch.cat([axes, axes.sum(1, keepdim=True)], 1), self.dimensions)

    def _score(self, frames: Float[Tensor, "f 3 h w"], prompt: str) -> Float[Tensor, "3"]:
        pixel_values, grid = self.preprocess(frames.to(self.network.device))
        ids = chat_ids(self.tokenizer, QUESTION.format(prompt=prompt), "video", token_count(grid))
        return self.network(ids.to(self.network.device), pixel_values, grid)[0]

    def preprocess(self, frames: Float[Tensor, "f 3 h w"]) -> tuple[Float[Tensor, "p 1176"], Int[Tensor, "1 3"]]:
        """An even number of frames in [-1, 1] as patches, and the number of patches in time, height and width."""
        height, width = frames.shape[-2:]
        size = grid_size(self.name, height, width, LEAST_PIXELS, self.settings.most_pixels)
        return to_patches(normalise(resize_like_torchvision(to_pixels(frames), size)))


class VideoAlignNetwork(Qwen2VLReward):
    """Qwen2-VL with a linear reward head.

    Args:
        special: ids of the three reward tokens.
        pad: id of the pad token, if the head reads the last token.
    """

    def __init__(self, config: Qwen2VLConfig, outputs: int, at: str, special: list[int], pad: int | None = None):
        super().__init__(config, nn.Linear(config.get_text_config().hidden_size, outputs, bias=False))
        self.at, self.special, self.pad = at, special, pad

    def forward(
        self,
        ids: Int[Tensor, "b n"],
        pixel_values: Float[Tensor, "p 1176"],
        grid_thw: Int[Tensor, "b 3"],
        mask: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b 3"]:
        """Raw scores of VQ, MQ and TA of the videos in `pixel_values`."""
        scores = self.rm_head(self.hidden(ids, pixel_values, grid_thw, "video", mask))
        if self.at == "last":
            return scores[torch.arange(len(ids), device=ids.device), last_token_index(ids, self.pad)]
        at_special = torch.isin(ids, torch.tensor(self.special, device=ids.device))
        scores = scores[at_special].view(len(ids), len(AXES), -1)  # b, token, output
        return scores.squeeze(2) if scores.shape[2] == 1 else scores.diagonal(dim1=1, dim2=2)


def make_network(
    config: Qwen2VLConfig, settings: VideoAlignSettings, state: Mapping[str, Tensor], tokenizer: Any
) -> VideoAlignNetwork:
    """The network without weights, with low-rank adapters where the checkpoint has them."""
    special = tokenizer.convert_tokens_to_ids(list(REWARD_TOKENS))
    down = {name.split(".lora_A.")[0]: weight for name, weight in state.items() if ".lora_A." in name}

    def make() -> VideoAlignNetwork:
        network = VideoAlignNetwork(config, settings.outputs, settings.at, special, tokenizer.pad_token_id)
        if down:
            rank = next(iter(down.values())).shape[0]
            lora = LoraConfig(
                r=rank,
                lora_alpha=settings.alpha,  # type: ignore[arg-type]  # an int says PEFT, and divides it by the rank
                use_rslora=settings.rank_stabilised,
                target_modules=sorted(down),
            )
            inject_adapter_in_model(lora, network, low_cpu_mem_usage=True)
        return network

    return empty_network(VideoAlign.name, make)


def read_state(weights: Path, base: str | Path) -> dict[str, Tensor]:
    """All weights by the network's names, completed from the base model if the checkpoint has only trained weights."""
    name = VideoAlign.name
    for file in (weights / "model.pth", weights / "model.safetensors"):
        if file.is_file():
            return network_names(dict(read_tensors(name, file)))
    trained = [weights / "adapter_model.safetensors", weights / "non_lora_state_dict.pth"]
    if not all(file.is_file() for file in trained):
        raise ValueError(f"critic {name}: {weights} has neither model.pth, nor {' and '.join(f.name for f in trained)}")
    places = [find_checkpoint(name, base, "*.safetensors"), *trained]
    return network_names(*(dict(read_tensors(name, place)) for place in places))


def network_names(*states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights by the network's names; of duplicate names the last one is used.

    Published names are those of transformers 4, plain, wrapped by PEFT (`base_layer`, `lora_A.default`), or of a saved
    PEFT adapter.
    """
    named = [{new: weight for old, weight in state.items() if (new := network_name(old))} for state in states]
    adapted = {name.split(".lora_A.")[0] for state in named for name in state if ".lora_A." in name}
    whole: dict[str, Tensor] = {}
    for state in named:
        for name, weight in state.items():
            name = re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", name)
            module, _, kind = name.rpartition(".")
            whole[f"{module}.base_layer.{kind}" if module in adapted else name] = weight
    return whole


def override_settings(
    settings: VideoAlignSettings, fps: float | None, num_frames: int | None, max_pixels: int | None, use_norm: bool
) -> VideoAlignSettings:
    """Settings with the given overrides; ValueError if both `fps` and `num_frames` are given."""
    name = VideoAlign.name
    if fps is not None and num_frames is not None:
        raise ValueError(f"critic {name}: fps is {fps} and num_frames {num_frames}; give one of them")
    new: dict[str, Any] = {"most_pixels": max_pixels} if max_pixels is not None else {}
    if fps is not None:
        new |= {"rate": fps, "frames": None, "spots": False}
    if num_frames is not None:
        new |= {"frames": int(num_frames), "spots": False}
    if not use_norm:
        new |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return build_from_files(name, lambda: replace(settings, **new), "invalid settings")


def sample_frames(frames: int, fps: float, settings: VideoAlignSettings) -> list[int]:
    """Indices of the frames it uses of a clip of `fps` a second: an even number, evenly spaced, or at four places.

    By rate, they are 4 (if the clip is long enough) to 768 frames. A clip that is too short is used completely, with
    its last frame repeated if the number is odd.

    Raises:
        ValueError: the clip is too short for four places.
    """
    if settings.spots:
        return frames_at_spots(frames, fps)
    if settings.frames is None:
        most = min(MOST_FRAMES, frames) // TEMPORAL_PATCH * TEMPORAL_PATCH
        count = _even(min(max(frames / fps * settings.rate, LEAST_FRAMES), most))
    else:
        count = min(_even(settings.frames), frames)
    places = _evenly(frames, count)
    return places + places[-1:] if count % TEMPORAL_PATCH else places


def frames_at_spots(frames: int, fps: float) -> list[int]:
    """Indices of six consecutive frames at 8 a second at each of four evenly spaced places of a clip."""
    half, every = AT_A_SPOT // 2, _evenly(frames, int(frames * SPOTS_RATE // fps))
    if len(every) <= AT_A_SPOT:
        raise ValueError(
            f"critic {VideoAlign.name}: a clip of {frames} frames at {fps:g} a second is too short for four places of "
            f"six frames at {SPOTS_RATE:g} a second; it needs {(AT_A_SPOT + 1) / SPOTS_RATE:g} seconds"
        )
    places = torch.linspace(half, len(every) - half - 1, SPOTS).round().long().tolist()
    return [frame for place in places for frame in every[place - half : place + half]]


def _even(count: float) -> int:
    """The nearest even number (Python's rounding), tolerant to floating-point errors of the division by the rate."""
    return round(round(count / TEMPORAL_PATCH, 9)) * TEMPORAL_PATCH


def _evenly(frames: int, count: int) -> list[int]:
    return torch.linspace(0, frames - 1, count).round().long().tolist()


def _last_checkpoint(folder: Path) -> Path:
    steps = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()}
    if not steps:
        raise ValueError(f"critic {VideoAlign.name}: there is no folder checkpoint-STEP in {folder}, as {SOURCE} has")
    return steps[max(steps)]
