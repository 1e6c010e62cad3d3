"""`besttake check critic|algorithm|model FILE`: run the contract tests on a user's own code."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tyro.conf import Positional

from besttake.contracts import Result, algorithm, critic, model, results
from besttake.data.video import write_video
from besttake.models import load_model
from besttake.models.policy import PolicyConfig
from besttake.rewards import load_reward
from besttake.runtime.configuration import require
from besttake.runtime.devices import find_device
from besttake.sampling.rollout import RolloutOverrides
from besttake.training.config import OptimConfig, TrainConfig
from besttake.training.validation import ValidationConfig
from besttake.types import Prompt

STEPS = 4
"""Training steps of the run that checks an algorithm."""


@dataclass(frozen=True)
class CriticCheck:
    """Check that a critic meets the contract of critics, on two videos of noise."""

    name: Positional[str]
    """Critic: `./my_critic.py`, `./my_critic.py:make`, `my_package.critic:make`, or a shipped critic's name."""
    path: str | None = None
    """Folder or hub id of its weights."""
    frames: int = 16
    """Frames of the test videos."""
    height: int = 32
    """Height of the test videos in pixels."""
    width: int = 32
    """Width of the test videos in pixels."""
    device: str = "auto"
    """Where to run it: auto, cpu, cuda, mps."""

    def __post_init__(self):
        for name in ("frames", "height", "width"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


@dataclass(frozen=True)
class ModelCheck:
    """Check that a model family meets the contract of models: sampling, encoding, training a LoRA."""

    name: Positional[str]
    """Model: `./my_family.py:CHECKPOINT`. A small checkpoint with random weights is enough."""
    frames: int | None = None
    """Frames of the videos; by default the model's own."""
    height: int | None = None
    """Height of the videos in pixels; by default the model's own."""
    width: int | None = None
    """Width of the videos in pixels; by default the model's own."""
    device: str = "auto"
    """Where to run it: auto, cpu, cuda, mps."""


def check_critic(config: CriticCheck) -> Iterator[Result]:
    """The results, one by one; ValueError if there is no such critic."""
    reward = load_reward(config.name, find_device(config.device), config.path)
    videos = critic.example_videos(config.frames, config.height, config.width)
    yield from results(critic.CHECKS, reward, videos.to(find_device(config.device)), critic.PROMPTS)


def check_model(config: ModelCheck) -> Iterator[Result]:
    """The results, one by one; ValueError if there is no such model."""
    device = find_device(config.device)
    loaded = load_model(config.name, device=device)
    frames, height, width = loaded.default_size()
    size = config.frames or frames, config.height or height, config.width or width
    loaded.latent_shape(*size)
    with tempfile.TemporaryDirectory() as folder:
        prompts: list[str] = list(model.PROMPTS)
        if loaded.needs_first_frame:
            Image.new("RGB", size[:0:-1], "orange").save(Path(folder) / "frame.png")
            prompts = [Prompt(text, first_frame=Path(folder) / "frame.png") for text in prompts]
        subject = model.Subject(lambda: load_model(config.name, device=device), size, prompts, Path(folder))
        yield from results(model.CHECKS, loaded, subject)


def check_algorithm(config: TrainConfig) -> Iterator[Result]:
    """The results, one by one.

    Args:
        config: of the algorithm. A short run with it is made in a temporary folder.

    Raises:
        ValueError: it cannot be trained with these settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = algorithm.train(small(config, Path(folder)))
        yield from results(algorithm.CHECKS, run, Path(folder))


def small(config: Any, folder: Path) -> Any:
    """The config of a run of a few steps with a checkpoint half-way, and few real clips."""
    if config.data == "world":
        write_clips(folder / "clips")
    return replace(
        config,
        data=str(folder / "clips") if config.data == "world" else config.data,
        out=folder / "run",
        steps=STEPS,
        minutes=0.0,
        save_every=STEPS // 2,
        policy=PolicyConfig(rank=2),
        optim=replace(OptimConfig(), lr=1e-3, warmup_steps=1),
        validation=ValidationConfig(every=0),
        evaluation=replace(config.evaluation, rewards=("dynamic-degree",), rollout=RolloutOverrides()),
        **({"rollout": replace(config.rollout, steps=2)} if hasattr(config, "rollout") else {}),
    )


def write_clips(folder: Path, count: int = 6) -> None:
    """Write a few captioned clips of the embedded world."""
    from besttake.world.clips import make_clip
    from besttake.world.physics import FPS

    for i in range(count):
        clip = make_clip(31, i)
        write_video(folder / f"{i}.mp4", torch.as_tensor(clip.video), FPS)
        (folder / f"{i}.txt").write_text(str(clip.caption))
