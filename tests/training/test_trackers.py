"""Trackers: TensorBoard for real, wandb by a stand-in, and trackio for real where it is installed."""

import sqlite3
import sys
import types
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from besttake.data.video import write_video
from besttake.training.trackers import check_trackers, open_tracker


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "run" / "00.mp4", torch.rand(6, 3, 32, 32) * 2 - 1, 8)
    return tmp_path / "run"


def log_twice(name: str, folder: Path) -> None:
    """Log three steps and a validation pass; then go on from step 2."""
    tracker = open_tracker(name, folder, 0, {"steps": 3, "optim": {"lr": 0.1}})
    for step in range(3):
        tracker.write({"train/loss": 1.0 - step / 4}, step)
    tracker.write_videos([folder / "00.mp4"], ["a [red] ball"], 2)
    tracker.close()
    tracker = open_tracker(name, folder, 2, {"steps": 3})
    tracker.write({"train/loss": 7.0}, 2)
    tracker.close()


def test_tensorboard_has_numbers_videos_and_prompts(folder):
    log_twice("tensorboard", folder)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 1.0), (1, 0.75), (2, 7.0)]
    first = EventAccumulator(str(min((folder / "tensorboard").iterdir())))
    first.Reload()
    (picture,) = first.Images("validation/00")
    with Image.open(BytesIO(picture.encoded_image_string)) as animation:
        assert (animation.n_frames, animation.info["duration"]) == (6, 120)
    (text,) = first.Tensors("validation/text_summary")
    assert b"| 00 | a [red] ball |" in text.tensor_proto.string_val[0]


def test_trackio_has_numbers_and_videos_on_this_machine(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    pytest.importorskip("trackio")
    log_twice("trackio", folder)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as tables:
        rows = tables.execute("select step, metrics from metrics order by id").fetchall()
    assert [step for step, _ in rows] == [0, 1, 2, 2, 2]
    assert b"0.75" in rows[1][1]
    assert b"a [red] ball" in rows[3][1]
    assert list((tmp_path / "trackio").rglob("*.mp4"))


def test_wandb_goes_on_in_the_same_run(folder, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(log=logged.append, finish=lambda: None, define_metric=lambda *_, **__: None)
    wandb = types.SimpleNamespace(
        init=lambda **settings: started.append(settings) or run,
        Video=lambda file, caption, format: (file, caption, format),
        Table=lambda columns, rows: (columns, rows),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log_twice("wandb", folder)
    first, second = started
    assert (first["id"], first["resume"], first["dir"], first["name"]) == (second["id"], "allow", folder, "run")
    assert first["config"] == {"steps": 3, "optim": {"lr": 0.1}}
    assert [row["step"] for row in logged] == [0, 1, 2, 2, 2]
    video = (str(folder / "00.mp4"), "a [red] ball", "mp4")
    assert logged[3]["validation/00"] == video
    assert logged[3]["validation/table"] == (["step", "prompt", "video"], [[2, "a [red] ball", video]])


def test_trackio_goes_on_in_the_same_run(folder, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(log=lambda row, step: logged.append((step, row)), finish=lambda: None)
    trackio = types.SimpleNamespace(
        init=lambda **settings: started.append(settings) or run,
        Video=lambda file, caption: (file, caption),
        Table=lambda columns, data: (columns, data),
    )
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    log_twice("trackio", folder)
    first, second = started
    assert (first["name"], first["resume"]) == (second["name"], "allow")
    assert [step for step, _ in logged] == [0, 1, 2, 2, 2]
    video = (str(folder / "00.mp4"), "a [red] ball")
    assert logged[3][1]["validation/00"] == video
    assert logged[3][1]["validation/table"] == (["step", "prompt", "video"], [[2, "a [red] ball", video]])


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("besttake.training.trackers.find_spec", lambda name: None if name == "wandb" else object())
    check_trackers(["tensorboard", "trackio"])
    with pytest.raises(
        ValueError, match=r"log is set to wandb, which is not installed: pip install 'besttake\[wandb\]'"
    ):
        check_trackers(["tensorboard", "wandb"])
