"""A run's videos before and after training: the same prompts, the same noise, and critics that did not train it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from besttake.configuration import read_yaml
from besttake.data.files import atomic
from besttake.data.video import enlargement, write_video
from besttake.devices import find_device
from besttake.embedded import embedded_model
from besttake.models import VideoModel, load_model
from besttake.rewards import load_reward
from besttake.rewards.checks import checked
from besttake.rollout import Rollout, RolloutConfig, generate
from besttake.types import Video


@dataclass(frozen=True)
class EvaluateConfig:
    """How a run is looked at when it is over."""

    prompts: str = "world-test"
    """File of prompts, one a line, or an embedded list."""
    count: int = 128
    """How many of them are shot, one video each."""
    seed: int = 777
    shown: int = 12
    """How many of the videos the report shows."""
    rewards: tuple[str, ...] = ()
    """Critics to ask; by default the analytic ones, and for clips of the embedded world its own two as well."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)


def trained_model(run: Path) -> VideoModel:
    """The model a run has trained, from its folder.

    Raises:
        ValueError: the folder holds no finished run, or its adapter is broken or of another model.
    """
    return with_adapter(base_model(run), run / "adapter")


def base_model(run: Path) -> VideoModel:
    """The model a run started from, where and in the precision it was trained."""
    config = read_yaml(run / "config.yaml")
    return load_model(embedded_model(config["model"]), getattr(torch, config["dtype"]), find_device(config["device"]))


def with_adapter(model: VideoModel, adapter: Path) -> VideoModel:
    """The model with what was trained: LoRA weights, or a whole denoiser under `transformer/`."""
    try:
        if (adapter / "transformer").is_dir():
            denoiser = type(model.denoiser)
            saved = denoiser.load_config(adapter / "transformer").get("_class_name")
            if saved != denoiser.__name__:
                raise ValueError(f"it is a {saved}, the model has a {denoiser.__name__}")
            model.pipeline.transformer = denoiser.from_pretrained(adapter / "transformer").eval()
        else:
            if not any(adapter.glob("*.safetensors")):
                raise ValueError("there are no weights in it; has the run finished?")
            model.pipeline.load_lora_weights(str(adapter))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the adapter in {adapter} does not load into {model.source}: {error}") from error
    return model


def shoot_before_after(run: Path, prompts: list[str], config: EvaluateConfig) -> tuple[Rollout, Rollout]:
    """Takes of the base model and of the trained one, from the same noise."""
    before = generate(base_model(run), prompts, config.rollout, seed=(config.seed,))
    return before, generate(trained_model(run), prompts, config.rollout, seed=(config.seed,))


def critics_say(rewards: tuple[str, ...], videos: Video, prompts: list[str]) -> dict[str, float]:
    """Mean score of each dimension of each critic, as "reward/critic/dimension"."""
    said: dict[str, float] = {}
    for name in rewards:
        score = checked(load_reward(name), videos, prompts)
        said |= {f"reward/{name}/{dimension}": score[dimension].mean().item() for dimension in score.dimensions}
    return said


def write_evaluation(run: Path, videos: dict[str, Video], prompts: list[str], shown: int, fps: float) -> None:
    """`evaluation/{before,after,...}/NN.mp4` and `evaluation/prompts.json`, as the report reads them."""
    folder = run / "evaluation"
    for name, clips in videos.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, clip in enumerate(clips[:shown]):
            write_video(folder / name / f"{i:02d}.mp4", clip, fps, upscale=enlargement(clip))
    (folder / "prompts.json").write_text(json.dumps(prompts[:shown], indent=1))


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """`summary.json`: "before", "after", "real", each name -> number, and "about"."""
    with atomic(run / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1))
