"""A run's videos before and after training: the same prompts, the same noise, and critics that did not train it."""

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
from besttake.data.video import enlargement, write_video
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
    """File of prompts, one a line, or an embedded list; by default world-test where the data are the embedded world's,
    and a tenth of yours, which is then not trained on."""
    count: int = 128
    """How many of them are shot at most, one video each."""
    seed: int = 777
    """Seed of the noise; the same before and after training."""
    shown: int = 12
    """How many of the videos the report shows."""
    rewards: tuple[str, ...] = ()
    """Critics to ask; by default the analytic ones, and for clips of the embedded world its own two as well."""
    rollout: RolloutOverrides = field(default_factory=RolloutOverrides)
    """How the evaluation samples otherwise than the run."""

    def __post_init__(self):
        require(self.count >= 2, "count", self.count, "2 or more")
        require(self.shown >= 0, "shown", self.shown, "0 or more")


ANALYTIC = ("dynamic-degree", "temporal-flicker", "motion-smoothness")
"""Critics of any clip."""

Found = dict[str, Any]
"""What was found of some clips, by name: tensors, arrays and lists with a row for each clip, or more of the same."""


def check_evaluation(config: EvaluateConfig, model: VideoModel, prompts: list[str], trained: Size) -> None:
    """Find out before a training, not after it, that its result could not be measured; raises ValueError.

    Critics are shown a clip of noise: one whose weights are missing, or that cannot take clips of this size, says so.
    A clip of another size than is `trained` on is shot in one step.
    """
    rollout = config.rollout.over(RolloutConfig())
    size = rollout.size(model)
    model.latent_shape(*size)
    try:
        model.check_prompts(prompts)
    except ValueError as error:
        raise ValueError(f"{error} (evaluation.prompts are what it is measured on)") from error
    if size != trained and prompts:
        try:
            generate(model, prompts[:1], replace(rollout, steps=1))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise ValueError(f"evaluation.rollout: {model.source} shoots no clips of {size} ({error})") from error
    noise = 2 * torch.rand(1, size[0], 3, *size[1:], generator=torch.Generator().manual_seed(0)) - 1
    for name in config.rewards or ANALYTIC:
        score_checked(load_reward(name, str(model.device)), noise, [*prompts, "noise"][:1], model.fps, abstentions=True)


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


def sample_videos(model: VideoModel, prompts: list[str], config: EvaluateConfig) -> Video:
    """A video of each prompt, on the CPU; the device holds no more than a batch of them."""
    model.check_prompts(prompts)
    rollout = config.rollout.over(RolloutConfig())
    parts = batches(prompts, rollout.batch)
    return torch.cat([generate(model, part, rollout, seed=(config.seed,)).videos.cpu() for part in parts])


class Critics:
    """Critics of any clips. One is on the device at a time; the others wait on the CPU."""

    def __init__(self, names: Sequence[str], fps: float, device: str = "cpu"):
        self.fps, self.rewards = fps, {name: load_reward(name, device) for name in names}
        for reward in self.rewards.values():
            offload_reward(reward)

    def measure(self, videos: Video, prompts: list[str]) -> Found:
        """The scores (b, d) of each critic; not a number where it abstains."""
        found: Found = {}
        for name, reward in self.rewards.items():
            with on_device(reward):
                score = score_checked(reward, videos, prompts, self.fps, abstentions=True)
            found[name] = torch.where(scored_mask(score)[:, None], score.values, torch.nan).cpu()
        return found

    def columns(self, found: Found) -> dict[str, np.ndarray]:
        """The score of each clip, by "reward/critic/dimension"."""
        return {name: values.numpy() for name, values in self._each(found, lambda scores: scores.T).items()}

    def means(self, found: Found) -> dict[str, float]:
        """The mean score of each dimension; without those of a critic that has scored no clip."""
        means = self._each(found, lambda scores: scores[~scores[:, 0].isnan()].mean(0))
        return {name: float(mean) for name, mean in means.items() if mean.isfinite()}

    def _each(self, found: Found, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {
            f"reward/{name}/{dimension}": value
            for name, reward in self.rewards.items()
            for dimension, value in zip(reward.dimensions, of(found[name]), strict=True)
        }


def joined(parts: Sequence[Found]) -> Found:
    """What was found of several batches of clips, as of one."""
    first = parts[0]
    return {name: _joined([part[name] for part in parts]) for name in first}


def _joined(parts: Sequence[Any]) -> Any:
    match parts[0]:
        case Tensor():
            return torch.cat(list(parts))
        case np.ndarray():
            return np.concatenate(parts)
        case dict():
            return joined(parts)
    return list(chain(*parts))


def batches(items: Items, size: int = 32) -> list[Items]:
    """Videos or prompts, `size` of them at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def write_shown(folder: Path, rows: Sequence[int], clips: Video, shown: int, fps: float) -> None:
    """The first `shown` clips of an evaluation as `NN.mp4`; `rows` are the numbers of these."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, clip in zip(rows, clips, strict=True):
        if row < shown:
            write_video(folder / f"{row:02d}.mp4", clip, fps, upscale=enlargement(clip))


def write_values(path: Path, prompts: Sequence[str], columns: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """A table of what was measured of each clip: `before`, `after` and `real` of a prompt a line each."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["number", "prompt", "clip", *names])
        for number, prompt in enumerate(prompts):
            for clip, values in columns.items():
                rows.writerow([number, prompt, clip, *(f"{values[name][number]:.9g}" for name in names)])


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """`summary.json`: "before", "after", "real", each name -> number, and "about"."""
    with atomic(run / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1))
