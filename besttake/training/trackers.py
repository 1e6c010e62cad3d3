"""Experiment trackers, which receive a run's metrics and validation videos in addition to `metrics.jsonl`.

Each is a class with the same three methods; its package is imported when it is opened. wandb and trackio read their own
environment variables: with WANDB_MODE=offline and without TRACKIO_SPACE_ID everything stays on this machine.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol

import av
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

TrackerName = Literal["tensorboard", "wandb", "trackio"]


class Tracker(Protocol):
    def __init__(self, folder: Path, step: int, config: Mapping[str, Any]): ...

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step, by name."""

    def write_videos(self, files: Sequence[Path], prompts: Sequence[str], step: int) -> None:
        """Log the mp4 files of a validation pass, each with its prompt, and a table of both."""

    def close(self) -> None:
        """Flush and close."""


def check_trackers(names: Sequence[str]) -> None:
    """ValueError if the package of a tracker is not installed."""
    for name in names:
        if not find_spec(name):
            raise ValueError(f"log is set to {name}, which is not installed: pip install 'besttake[{name}]'")


def open_tracker(name: TrackerName, folder: Path, step: int, config: Mapping[str, Any]) -> Tracker:
    """Open a tracker.

    Args:
        folder: the run's folder, whose name is the run's name in the tracker.
        step: step to resume from; 0 for a new run.
        config: the run's settings.
    """
    kinds: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}
    return kinds[name](folder, step, config)


class TensorBoard:
    """Event files in the run's `tensorboard/`; videos are animated GIFs."""

    def __init__(self, folder: Path, step: int, config: Mapping[str, Any]):
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None, flush_secs=10)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)

    def write_videos(self, files: Sequence[Path], prompts: Sequence[str], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for file in files:
            image = Summary.Image(encoded_image_string=_animation(file), colorspace=3)
            summary = Summary(value=[Summary.Value(tag=f"validation/{file.stem}", image=image)])
            self._board._get_file_writer().add_summary(summary, step)
        rows = [f"| {file.stem} | {prompt} |" for file, prompt in zip(files, prompts, strict=True)]
        self._board.add_text("validation", "\n".join(["| video | prompt |", "|---|---|", *rows]), step)

    def close(self) -> None:
        self._board.close()


class WandB:
    """Weights & Biases; a resumed run continues the same W&B run."""

    def __init__(self, folder: Path, step: int, config: Mapping[str, Any]):
        self._wandb = importlib.import_module("wandb")
        # step is a metric of its own: a resumed run may start before the last logged step
        self._run = self._wandb.init(
            project="besttake", name=folder.name, id=_id_of(folder), dir=folder, config=dict(config), resume="allow"
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def write_videos(self, files: Sequence[Path], prompts: Sequence[str], step: int) -> None:
        def video(file: Path, prompt: str) -> Any:
            return self._wandb.Video(str(file), caption=prompt, format="mp4")

        pairs = list(zip(files, prompts, strict=True))
        table = self._wandb.Table(
            ["step", "prompt", "video"], [[step, prompt, video(f, prompt)] for f, prompt in pairs]
        )
        videos = {f"validation/{file.stem}": video(file, prompt) for file, prompt in pairs}
        self._run.log({**videos, "validation/table": table, "step": step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio: a local database, or the hub Space named by TRACKIO_SPACE_ID."""

    def __init__(self, folder: Path, step: int, config: Mapping[str, Any]):
        self._trackio = importlib.import_module("trackio")
        self._run = self._trackio.init(project="besttake", name=_id_of(folder), config=dict(config), resume="allow")

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def write_videos(self, files: Sequence[Path], prompts: Sequence[str], step: int) -> None:
        pairs = list(zip(files, prompts, strict=True))
        videos = {f"validation/{f.stem}": self._trackio.Video(str(f), caption=prompt) for f, prompt in pairs}
        rows = [[step, prompt, self._trackio.Video(str(f), caption=prompt)] for f, prompt in pairs]
        table = self._trackio.Table(columns=["step", "prompt", "video"], data=rows)
        self._run.log({**videos, "validation/table": table}, step=step)

    def close(self) -> None:
        self._run.finish()


def _id_of(folder: Path) -> str:
    """A unique id of a run: the folder's name with a hash of its path."""
    return f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def _animation(file: Path) -> bytes:
    """A video file as an animated GIF."""
    with av.open(str(file)) as video:
        rate = float(video.streams.video[0].average_rate or 8)
        # of its own 256 colours each, found five times as fast as by PIL's default
        first, *others = [
            frame.to_image(threads=1).quantize(method=Image.Quantize.FASTOCTREE) for frame in video.decode(video=0)
        ]
    written = BytesIO()
    first.save(written, "GIF", save_all=True, append_images=others, duration=round(1000 / rate), loop=0)
    return written.getvalue()
