"""Evaluation of a run before and after training: the same prompts and noise, scored by held-out critics."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from besttake.data.files import atomic
from besttake.data.video import upscale_for, write_video
from besttake.models import Size, VideoModel, load_model
from besttake.rewards import load_reward
from besttake.rewards.checks import score_checked
from besttake.rewards.offloading import offload_reward, on_device
from besttake.rewards.partial import scored_mask
from besttake.runtime.configuration import read_yaml, require
from besttake.runtime.devices import find_device
from besttake.runtime.memory import out_of_memory
from besttake.sampling.rollout import RolloutConfig, RolloutOverrides, generate
from besttake.types import Video

Items = TypeVar("Items", Tensor, list[str], list[int])


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a finished run, before against after training; write its summary.json and report.html."""

    prompts: str | None = None
    """File of prompts, one per line, or an embedded list; default: world-test for data of the embedded world, else a
    tenth of the run's own prompts, which is then held out of training."""
    count: int = 128
    """Largest number of prompts; one video is sampled for each."""
    seed: int = 777
    """Seed of the noise; the same before and after training."""
    shown: int = 12
    """Number of videos in the report."""
    rewards: tuple[str, ...] = ()
    """Critics; default: the analytic ones, and for the embedded world also its own two."""
    rollout: RolloutOverrides = field(default_factory=RolloutOverrides)
    """How the evaluation samples otherwise than the run."""

    def __post_init__(self):
        require(self.count >= 2, "count", self.count, "2 or more")
        require(self.shown >= 0, "shown", self.shown, "0 or more")


ANALYTIC = ("dynamic-degree", "temporal-flicker", "motion-smoothness")
"""Default critics for any clips."""

Measurements = dict[str, Any]
"""Measurements of clips by name: tensors, arrays or lists with one row per clip, or nested dicts of these."""


def check_evaluation(config: EvaluateConfig, model: VideoModel, prompts: list[str], trained: Size) -> None:
    """Check before the training that its result can be evaluated; ValueError if not.

    Every critic scores a clip of noise, so that missing weights or an unsupported size are detected. If the size
    differs from `trained`, the training size, one clip is sampled in one step.
    """
    rollout = config.rollout.over(RolloutConfig())
    size = rollout.size(model)
    model.latent_shape(*size)
    try:
        model.check_prompts(prompts)
    except ValueError as error:
        raise ValueError(f"{error} (in evaluation.prompts)") from error
    if size != trained and prompts:
        try:
            generate(model, prompts[:1], replace(rollout, steps=1))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise ValueError(f"evaluation.rollout: {model.source} cannot sample clips of {size} ({error})") from error
    noise = 2 * torch.rand(1, size[0], 3, *size[1:], generator=torch.Generator().manual_seed(0)) - 1
    for name in config.rewards or ANALYTIC:
        score_checked(load_reward(name, str(model.device)), noise, [*prompts, "noise"][:1], model.fps, abstentions=True)


def trained_model(run: Path) -> VideoModel:
    """Load the trained model of a run folder.

    Raises:
        ValueError: the folder has no finished run, or its adapter is broken or of another model.
    """
    return with_adapter(base_model(run), run / "adapter")


def base_model(run: Path) -> VideoModel:
    """Load the base model of a run, with the run's device, precision, quantization and tiling."""
    config = read_yaml(run / "config.yaml")
    dtype, bits = getattr(torch, config["dtype"]), config.get("quantize", "none")
    model = load_model(config["model"], dtype, find_device(config["device"]), bits)
    model.parts.set_up_vae(config.get("vae_dtype", "auto"), config.get("tiling", False))
    return model


def with_adapter(model: VideoModel, adapter: Path) -> VideoModel:
    """Load trained weights into the model: LoRA, or full denoisers (folder `transformer/`)."""
    try:
        if (adapter / "transformer").is_dir():
            for name, denoiser in model.denoisers.items():
                trained = whole_denoiser(adapter / name, type(denoiser))
                setattr(model.pipeline, name, trained.to(denoiser.device, denoiser.dtype).eval())
        else:
            if not any(adapter.glob("*.safetensors")):
                raise ValueError("it has no weights; has the run finished?")
            model.load_lora(adapter)
            check_loaded(model, adapter)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the adapter in {adapter} does not load into {model.source}: {error}") from error
    return model


def whole_denoiser(folder: Path, cls: Any) -> Any:
    """Load a fully trained denoiser; ValueError if it is of another class."""
    saved = cls.load_config(folder).get("_class_name")
    if saved != cls.__name__:
        raise ValueError(f"it is a {saved}, expected a {cls.__name__}")
    return cls.from_pretrained(folder)


def check_loaded(model: VideoModel, adapter: Path) -> None:
    """ValueError unless the model has loaded every weight of the LoRA."""
    loaded_names: set[str] = set()
    for denoiser in model.denoisers.values():
        for name in getattr(denoiser, "peft_config", {}):
            loaded_names |= get_peft_model_state_dict(denoiser, adapter_name=name).keys()
    for path in adapter.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            unmatched = sorted(key for key in file.keys() if key.removeprefix("transformer.") not in loaded_names)  # noqa: SIM118
        if unmatched:
            raise ValueError(f"{len(unmatched)} of its weights do not match the model, such as {unmatched[0]}")


def sample_videos(model: VideoModel, prompts: list[str], config: EvaluateConfig) -> Video:
    """Sample one video per prompt, in batches; returns all of them on the CPU."""
    model.check_prompts(prompts)
    rollout = config.rollout.over(RolloutConfig())
    parts = batches(prompts, rollout.batch)
    return torch.cat([generate(model, part, rollout, seed=(config.seed,)).videos.cpu() for part in parts])


class CriticMeasures:
    """Scores of critics. Only one critic is on the device at a time; the others are offloaded to the CPU."""

    def __init__(self, names: Sequence[str], fps: float, device: str = "cpu"):
        self.fps, self.rewards = fps, {name: load_reward(name, device) for name in names}
        for reward in self.rewards.values():
            offload_reward(reward)

    def measure(self, videos: Video, prompts: list[str]) -> Measurements:
        """The scores (b, d) of each critic; NaN where it abstains."""
        measurements: Measurements = {}
        for name, reward in self.rewards.items():
            with on_device(reward):
                score = score_checked(reward, videos, prompts, self.fps, abstentions=True)
            measurements[name] = torch.where(scored_mask(score)[:, None], score.values, torch.nan).cpu()
        return measurements

    def columns(self, measurements: Measurements) -> dict[str, np.ndarray]:
        """The scores of all clips, by "reward/critic/dimension"."""
        return {name: values.numpy() for name, values in self._each(measurements, lambda scores: scores.T).items()}

    def means(self, measurements: Measurements) -> dict[str, float]:
        """The mean score of each dimension, without critics that abstained on all clips."""
        means = self._each(measurements, lambda scores: scores[~scores[:, 0].isnan()].mean(0))
        return {name: float(mean) for name, mean in means.items() if mean.isfinite()}

    def _each(self, measurements: Measurements, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {
            f"reward/{name}/{dimension}": value
            for name, reward in self.rewards.items()
            for dimension, value in zip(reward.dimensions, of(measurements[name]), strict=True)
        }


def concat_measurements(parts: Sequence[Measurements]) -> Measurements:
    """Concatenate the measurements of several batches."""
    first = parts[0]
    return {name: _concat([part[name] for part in parts]) for name in first}


def _concat(parts: Sequence[Any]) -> Any:
    match parts[0]:
        case Tensor():
            return torch.cat(list(parts))
        case np.ndarray():
            return np.concatenate(parts)
        case dict():
            return concat_measurements(parts)
    return list(chain(*parts))


def batches(items: Items, size: int = 32) -> list[Items]:
    """Split videos or prompts into batches of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def write_examples(folder: Path, rows: Sequence[int], clips: Video, shown: int, fps: float) -> None:
    """Write those of the clips that are among the first `shown` of an evaluation as `NN.mp4`; `rows`: their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, clip in zip(rows, clips, strict=True):
        if row < shown:
            write_video(folder / f"{row:02d}.mp4", clip, fps, upscale=upscale_for(clip))


def write_values(path: Path, prompts: Sequence[str], columns: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write a table of each clip's measurements, with one line each for `before`, `after` and `real` of a prompt."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["number", "prompt", "clip", *names])
        for number, prompt in enumerate(prompts):
            for clip, values in columns.items():
                rows.writerow([number, prompt, clip, *(f"{values[name][number]:.9g}" for name in names)])


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`: "before", "after", "real" (each name -> number), and "about"."""
    with atomic(run / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1))
