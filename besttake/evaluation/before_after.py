"""A run's videos before and after training: the same prompts, the same noise, and critics that did not train it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from besttake.configuration import read_yaml, require
from besttake.data.files import atomic
from besttake.data.prompts import read_prompts
from besttake.data.video import enlargement, write_video
from besttake.devices import find_device
from besttake.models import VideoModel, load_model
from besttake.rewards import load_reward
from besttake.rewards.checks import checked
from besttake.rollout import RolloutConfig, generate
from besttake.types import Video

Items = TypeVar("Items", Tensor, list[str])


@dataclass(frozen=True)
class EvaluateConfig:
    """How a run is looked at when it is over."""

    prompts: str = "world-test"
    """File of prompts, one a line, or an embedded list."""
    count: int = 128
    """How many of them are shot at most, one video each."""
    seed: int = 777
    shown: int = 12
    """How many of the videos the report shows."""
    rewards: tuple[str, ...] = ()
    """Critics to ask; by default the analytic ones, and for clips of the embedded world its own two as well."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self):
        require(self.count >= 2, "count", self.count, "2 or more")
        require(self.shown >= 0, "shown", self.shown, "0 or more")


def evaluation_prompts(config: EvaluateConfig) -> list[str]:
    """The prompts to be shot, none twice: from the same noise it would be the same video."""
    return list(dict.fromkeys(read_prompts(config.prompts)))[: config.count]


def check_evaluation(config: EvaluateConfig, model: VideoModel) -> None:
    """Find out before a training, not after it, that its result could not be measured; raises ValueError."""
    model.check_prompts(evaluation_prompts(config))
    model.latent_shape(*config.rollout.size(model))
    if config.rollout.decoded:
        raise ValueError(
            f"evaluation.rollout.decoded is {config.rollout.decoded}; whole clips are measured: leave it out"
        )
    for name in config.rewards:
        load_reward(name)


def trained_model(run: Path) -> VideoModel:
    """The model a run has trained, from its folder.

    Raises:
        ValueError: the folder holds no finished run, or its adapter is broken or of another model.
    """
    return with_adapter(base_model(run), run / "adapter")


def base_model(run: Path) -> VideoModel:
    """The model a run started from, where and in the precision it was trained, and in tiles if it was."""
    config = read_yaml(run / "config.yaml")
    dtype, bits = getattr(torch, config["dtype"]), config.get("quantize", "none")
    model = load_model(config["model"], dtype, find_device(config["device"]), bits)
    if config.get("tiling"):
        model.tile()
    return model


def with_adapter(model: VideoModel, adapter: Path) -> VideoModel:
    """The model with what was trained: LoRA weights, or whole denoisers under their names (`transformer/`)."""
    try:
        if (adapter / "transformer").is_dir():
            for name, denoiser in model.denoisers.items():
                trained = whole_denoiser(adapter / name, type(denoiser))
                setattr(model.pipeline, name, trained.to(denoiser.device, denoiser.dtype).eval())
        else:
            if not any(adapter.glob("*.safetensors")):
                raise ValueError("there are no weights in it; has the run finished?")
            model.load_lora(adapter)
            check_loaded(model, adapter)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the adapter in {adapter} does not load into {model.source}: {error}") from error
    return model


def whole_denoiser(folder: Path, cls: Any) -> Any:
    """A fully trained denoiser; ValueError if it is of another class."""
    saved = cls.load_config(folder).get("_class_name")
    if saved != cls.__name__:
        raise ValueError(f"it is a {saved}, the model has a {cls.__name__}")
    return cls.from_pretrained(folder)


def check_loaded(model: VideoModel, adapter: Path) -> None:
    """ValueError unless every weight of the LoRA has found its place in the model."""
    here: set[str] = set()
    for denoiser in model.denoisers.values():
        for name in getattr(denoiser, "peft_config", {}):
            here |= get_peft_model_state_dict(denoiser, adapter_name=name).keys()
    for path in adapter.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            homeless = sorted(key for key in file.keys() if key.removeprefix("transformer.") not in here)  # noqa: SIM118
        if homeless:
            raise ValueError(f"{len(homeless)} of its weights are of another model, such as {homeless[0]}")


def shoot(model: VideoModel, prompts: list[str], config: EvaluateConfig) -> Video:
    """A video of each prompt, on the CPU; the device holds no more than a batch of them."""
    model.check_prompts(prompts)
    parts = batches(prompts, config.rollout.batch)
    return torch.cat([generate(model, part, config.rollout, seed=(config.seed,)).videos.cpu() for part in parts])


def critics_say(
    rewards: tuple[str, ...], videos: Video, prompts: list[str], fps: float, device: str = "cpu"
) -> dict[str, float]:
    """Mean score of each dimension of each critic, as "reward/critic/dimension"."""
    said: dict[str, float] = {}
    for name in rewards:
        reward = load_reward(name, device)
        parts = zip(batches(videos), batches(prompts), strict=True)
        mean = torch.cat([checked(reward, some, told, fps).values for some, told in parts]).mean(0).tolist()
        said |= {f"reward/{name}/{dimension}": value for dimension, value in zip(reward.dimensions, mean, strict=True)}
    return said


def batches(items: Items, size: int = 32) -> list[Items]:
    """Videos or prompts, `size` of them at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def write_evaluation(run: Path, videos: dict[str, Video], prompts: list[str], shown: int, fps: float) -> None:
    """`evaluation/{before,after,...}/NN.mp4` and `evaluation/prompts.json`, as the report reads them."""
    folder = run / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier look left is of other prompts or another seed
    for name, clips in videos.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, clip in enumerate(clips[:shown]):
            write_video(folder / name / f"{i:02d}.mp4", clip, fps, upscale=enlargement(clip))
    (folder / "prompts.json").write_text(json.dumps(prompts[:shown], indent=1))


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """`summary.json`: "before", "after", "real", each name -> number, and "about"."""
    with atomic(run / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1))
