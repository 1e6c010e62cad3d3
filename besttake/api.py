"""`import besttake as bt`: what the commands do, from Python, with data for an answer instead of text.

Nothing here prints, and logging is left to the caller. Long work shows a progress bar on standard error, in a notebook
below the cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from besttake.commands.cli import RECIPES, read_recipe, train_and_report, with_values
from besttake.commands.report import measure_run
from besttake.data.video import probe, read_video
from besttake.evaluation.before_after import with_adapter
from besttake.models import Quantization, VideoModel
from besttake.models import load_model as read_model
from besttake.models.policy import Policy
from besttake.plan import Plan, PlanConfig, make_plan
from besttake.report import write_report
from besttake.report.folder import RunFolder, read_run
from besttake.rewards import complete
from besttake.rewards import load_reward as read_reward
from besttake.rewards.checks import score_checked
from besttake.runtime.configuration import from_dict, is_shipped, to_dict
from besttake.runtime.devices import find_device
from besttake.runtime.distributed import end_processes, is_main
from besttake.runtime.renamed import with_new_names
from besttake.sampling.rollout import Rollout, RolloutConfig
from besttake.sampling.rollout import generate as sample
from besttake.training.callbacks import Callback, callbacks
from besttake.training.config import TrainConfig
from besttake.types import FPS, Reward, Score, Video

__all__ = [
    "Policy",
    "evaluate",
    "generate",
    "load_model",
    "load_reward",
    "plan",
    "recipes",
    "report",
    "score",
    "train",
]

DTYPES = ("float32", "bfloat16")


def recipes() -> dict[str, str]:
    """The shipped recipes: name -> one-line description."""
    return {file.stem: file.read_text().splitlines()[0].lstrip("# ") for file in sorted(RECIPES.glob("*.yaml"))}


def train(
    recipe: Any, *, on_step: Callback | None = None, on_validation: Callback | None = None, **settings: Any
) -> RunFolder:
    """Train a recipe, evaluate it before and after, and write the report, like `besttake train`.

    The same call resumes the run. Ctrl-C, or interrupting the notebook cell, saves the completed steps.

    Args:
        recipe: name of a shipped recipe, path of a YAML file or of an algorithm of your own (.py), or a config.
        on_step, on_validation: called after each step or validation pass with the `Run` and the metrics just logged.
        settings: override the recipe's. A section is a dict with the settings to change: `rollout={"steps": 4}`,
            `reward={"name": "./my_critic.py"}`.

    Returns:
        The run: `path`, `config`, `rows` of metrics, `summary` ("before" and "after", each name -> number), `clips`.

    Raises:
        ValueError: there is no such recipe or setting, or the data cannot be used.
        FloatingPointError: the loss is not finite.
    """
    with callbacks(on_step, on_validation):
        return read_run(train_and_report(_config(recipe, settings), _measure_and_write))


def plan(recipe: Any, card: str = "H100", gpus: int = 1, **settings: Any) -> Plan:
    """Memory, seconds and hours of a recipe on a card, without weights or the card, like `besttake plan`.

    Args:
        recipe, settings: as for `train`.
        card: a name in besttake/plan/cards.py.
        gpus: number of cards, among which every step is split.

    Returns:
        The plan: `phases` by name, each with `peak` bytes and `seconds`; `room` in bytes; `step` in seconds; `hours`.

    Raises:
        ValueError: there is no such recipe, setting, card or model.
    """
    return make_plan(_config(recipe, settings), PlanConfig(card=card, gpus=gpus))


def evaluate(run: str | Path, **settings: Any) -> RunFolder:
    """Evaluate a finished run before and after training, on held-out prompts.

    Args:
        run: the run's folder.
        settings: override the run's `evaluation` settings: `count=32`.

    Returns:
        The run with its `summary`, which is also written to `summary.json`.

    Raises:
        ValueError: the folder has no finished run, or there is no such setting.
    """
    folder = read_run(Path(run)).path
    config = _config(str(folder / "config.yaml"), {"evaluation": settings})
    measure_run(folder, config)
    end_processes()
    return read_run(folder)


def report(run: str | Path) -> Path:
    """Write the report of a run, finished or not. Call `evaluate` first to include measurements.

    Returns:
        The path of its `report.html`, which is self-contained.

    Raises:
        ValueError: the folder has no run, or one of its files is broken.
    """
    return write_report(Path(run))


def load_model(
    source: str | Path = "tiny-cogvideox",
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    quantize: Quantization = "none",
) -> VideoModel:
    """Load a video diffusion model.

    Args:
        source: folder or hub id of a diffusers pipeline, the name of an embedded one, or a family of your own with its
            checkpoint: "./my_family.py:CHECKPOINT".
        adapter: the `adapter/` folder of a run.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32" or "bfloat16".
        quantize: quantization of the denoiser's blocks: "none", "int8", "fp8", "nf4".

    Raises:
        ValueError: there is no such model or adapter, or its files are broken.
    """
    for name, value, choices in (("dtype", dtype, DTYPES), ("quantize", quantize, get_args(Quantization))):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
    model = read_model(str(source), getattr(torch, dtype), find_device(device), quantize)
    return with_adapter(model, Path(adapter)) if adapter else model


def load_reward(name: str | Path = "world", device: str = "auto", path: str | Path | None = None, **own: Any) -> Reward:
    """Load a critic; `reward(videos, prompts, fps)` returns a `Score`.

    Args:
        name: name of a shipped critic, folder with a config.json, a judge's .yaml file, URL of a served critic, or a
            critic of your own, "./my_critic.py" or "my_package.critic:make".
        path: folder or hub id of the weights; by default the published ones.
        own: the critic's own settings, such as VideoAlign's `num_frames`.

    Raises:
        ValueError: there is no such critic, its files are broken, or it has no such setting.
    """
    return read_reward(name, find_device(device), path, **own)


def generate(
    model: str | Path | VideoModel | Policy, prompts: str | Sequence[str], n: int = 1, seed: int = 0, **settings: Any
) -> Rollout:
    """Sample videos of prompts.

    Args:
        model: a model, a policy, or a `source` of `load_model`.
        prompts: one or several; a `besttake.types.Prompt` can have a first frame or a source video.
        n: videos per prompt.
        seed: key of the noise, together with the prompt and the number of the video; independent of the batch.
        settings: as in the section `rollout`: `steps`, `guidance`, `frames`, `height`, `width`, `batch`, ...

    Returns:
        `videos`, float (b, f, 3, h, w) in [-1, 1], grouped by prompt; their `latents` (b, c, f, h, w), `prompts` (b)
        and `condition`.

    Raises:
        ValueError: a prompt is empty or too long, there is no such setting, or the model cannot sample that size.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or n < 1:
        raise ValueError(f"{len(texts)} prompts with n {n} make no video; give a prompt or more, and n of 1 or more")
    config = from_dict(RolloutConfig, settings)
    sampler = load_model(model) if isinstance(model, str | Path) else model
    if not isinstance(sampler, VideoModel | Policy):
        raise ValueError(f"model is {sampler!r}; expected a model, a policy, or the name of a model")
    return sample(sampler, texts, config, n=n, seed=(seed,))


def score(
    reward: str | Reward,
    videos: Rollout | Video | str | Path | Sequence[str | Path],
    prompts: str | Sequence[str] | None = None,
    fps: float | None = None,
) -> Score:
    """Score videos with a critic.

    Args:
        reward: a critic, or a `name` of `load_reward`.
        videos: the result of `generate`, a float tensor (b, f, 3, h, w) in [-1, 1], or paths of b video files.
        prompts: one per video; not needed for the result of `generate`.
        fps: frames per second; by default that of the files, or 8.

    Returns:
        `values`, float32 (b, d), higher is better; `dimensions`, the names of the d columns; `score["name"]`, a column.

    Raises:
        ValueError: there is no such critic, it cannot score the videos, or prompts are missing.
    """
    critic = load_reward(reward) if isinstance(reward, str | Path) else complete(reward, repr(reward))
    if fps is not None and fps <= 0:
        raise ValueError(f"fps is {fps}; expected frames a second, more than 0")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if isinstance(videos, Rollout):
        return score_checked(critic, videos.videos, list(prompts or videos.prompts), fps or FPS)
    if prompts is None:
        raise ValueError("prompts are missing; give one per video")
    videos = [videos] if isinstance(videos, str | Path) else videos
    if isinstance(videos, torch.Tensor):
        return score_checked(critic, videos, list(prompts), fps or FPS)
    if not videos or len(videos) != len(prompts):
        raise ValueError(f"there are {len(videos)} videos but {len(prompts)} prompts; give one prompt per video")
    rows = [
        score_checked(critic, read_video(Path(file))[None], [prompt], fps or probe(Path(file)).fps).values
        for file, prompt in zip(videos, prompts, strict=True)
    ]
    return Score(torch.cat(rows), critic.dimensions)


def _measure_and_write(folder: Path, config: Any) -> None:
    measure_run(folder, config)
    if is_main():
        write_report(folder)


def _config(recipe: Any, settings: dict[str, Any]) -> Any:
    """A recipe's config with other settings."""
    config = read_recipe(str(recipe)) if isinstance(recipe, str | Path) else recipe
    if not isinstance(config, TrainConfig):
        raise ValueError(f"recipe is {recipe!r}; expected the name of a recipe, a .yaml or .py file, or a config")
    given = {name: to_dict(value) if dataclasses.is_dataclass(value) else value for name, value in settings.items()}
    if is_shipped(config):
        given = with_new_names(given, "the call")
    return with_values(config, _merged(config, given), _names(config, given))


def _merged(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """A config as plain values, updated recursively with `changes`."""
    values = to_dict(config)
    for name, value in changes.items():
        section = getattr(config, name, None)
        values[name] = _merged(section, value) if _is_section(section, value) else value
    return values


def _names(config: Any, changes: dict[str, Any], head: str = "") -> list[str]:
    """Dotted names of the changed settings."""
    names: list[str] = []
    for name, value in changes.items():
        section = getattr(config, name, None)
        names += _names(section, value, f"{head}{name}.") if _is_section(section, value) else [f"{head}{name}"]
    return names


def _is_section(section: Any, value: Any) -> bool:
    return dataclasses.is_dataclass(section) and isinstance(value, dict)
