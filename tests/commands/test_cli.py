"""What a user of the command line meets: help, and one plain line with exit status 2 for what cannot be."""

import importlib.metadata
import json
import math
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from PIL import Image
from rich.console import Console

import besttake
from besttake import __version__
from besttake.commands import cli
from besttake.commands.cli import RECIPES, main, read_recipe
from besttake.commands.generate import ClipsConfig, write_clips
from besttake.data.real import find_clips
from besttake.data.video import read_video
from besttake.rewards import critics
from besttake.runtime import console
from besttake.training.run import Run
from tests.tiny import tiny_models

ROOT = Path(__file__).parents[2]


def besttake_says(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def refuses(capsys):
    """Runs a command that must end with status 2 and this message, or its parts, in one paragraph, no traceback."""

    def run(*arguments, message):
        status, _, error = besttake_says(capsys, *arguments)
        assert status == 2
        flat = " ".join(error.replace("│", " ").split())
        for part in [message] if isinstance(message, str) else message:
            assert part in flat, flat
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Input that is wrong is found out before any model is loaded."""

    def loaded(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("besttake.training.setup.load_model", loaded)


@pytest.fixture
def recipe(tmp_path, model_folder, material):
    """Writes a small recipe on a random model."""

    def write(algorithm="onlinevpo", **changes):
        values = {
            "algorithm": algorithm,
            "model": str(model_folder("tiny-cogvideox")),
            "data": str(material / ("prompts.txt" if algorithm == "onlinevpo" else "clips")),
            "out": str(tmp_path / "run"),
            "steps": 1,
            "rollout": {"steps": 1},
            "policy": {"rank": 2},
            "validation": {"every": 0},
        }
        if algorithm == "onlinevpo":
            values |= {"candidates": 2, "prompts_per_step": 1, "reward": {"name": "temporal-flicker"}}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


def test_help_names_every_command(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        status, out, _ = besttake_says(capsys, *arguments)
        assert status == 0
        assert all(f"besttake {command}" in out for command in cli.COMMANDS)


def test_version(capsys):
    assert besttake_says(capsys, "--version")[:2] == (0, f"{__version__}\n")


def test_the_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "besttake", "train", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no recipe 'nothing'")
    assert len(done.stderr.splitlines()) == 1


def test_train_without_a_recipe_lists_them(capsys):
    status, out, _ = besttake_says(capsys, "train")
    assert status == 0
    assert all(file.stem in out for file in RECIPES.glob("*.yaml"))


def test_help_of_a_recipe_lists_its_flags_nested_ones_too(capsys):
    status, out, _ = besttake_says(capsys, "train", "onlinevpo-tiny", "--help")
    assert status == 0
    for flag in ("--data", "--out", "--steps", "--seed", "--policy.rank", "--optim.lr", "--rollout.guidance"):
        assert flag in out


@pytest.mark.parametrize("name", sorted(file.stem for file in RECIPES.glob("*.yaml")))
def test_the_printed_config_is_a_recipe(capsys, tmp_path, name):
    flags = ("--steps", "7", "--seed", "3", "--policy.rank", "5", "--data", "here", "--out", tmp_path, "--print-config")
    status, out, _ = besttake_says(capsys, "train", name, *flags)
    assert status == 0
    path = tmp_path / "printed.yaml"
    path.write_text(out)
    config = read_recipe(str(path))
    assert (config.steps, config.seed, config.policy.rank, config.data, config.out) == (7, 3, 5, "here", tmp_path)
    assert besttake_says(capsys, "train", path, "--print-config")[1] == out


def test_weights_given_as_a_flag_replace_those_of_the_recipe(capsys):
    flags = ("train", "onlinevpo-tiny", "--reward.weights", "dynamic degree", "2", "--print-config")
    changed, unchanged = (besttake_says(capsys, *arguments)[1] for arguments in (flags, (*flags[:2], "--print-config")))
    assert "weights:\n    dynamic degree: 2.0\n" in changed
    assert "visual quality" not in changed
    assert "visual quality: 1.5" in unchanged


def test_an_unknown_command(refuses):
    assert len(refuses("trian", message=["there is no command 'trian'", "train"]).splitlines()) == 1


def test_an_unknown_recipe(refuses):
    assert (
        len(refuses("train", "nothing", message=["there is no recipe 'nothing'", "onlinevpo-tiny"]).splitlines()) == 1
    )
    refuses("train", "nothing.yaml", message="there is no recipe 'nothing.yaml'")


def test_flags_before_the_recipe(refuses):
    refuses("train", "--steps", "3", message="give a recipe before the flags")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stepz", "3"], ["--stepz", "--steps"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--dtype", "float8"], ["--dtype", "float8"]),
        (["--candidates", "1"], "candidates is 1; expected 2 or more"),
        (["--optim.lr", "-1"], "optim.lr is -1.0; expected a number above 0"),
        (["--policy.rank", "0"], "policy.rank is 0"),
    ],
    ids=str,
)
def test_wrong_flags(refuses, flags, message):
    refuses("train", "onlinevpo-tiny", *flags, message=message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "unknown key 'stepz'; did you mean 'steps'?"),
        ({"optim": {"lrate": 3}}, "unknown key 'optim.lrate'"),
        ({"steps": "many"}, "'steps' is 'many' (str), expected a whole number"),
        ({"candidates": 1}, "candidates is 1; expected 2 or more"),
        ({"algorithm": "ppo"}, "there is no algorithm 'ppo'; there are offline_dpo, onlinevpo"),
        ({"reward": {"name": "nobody"}}, "unknown critic 'nobody'"),
        (
            {"reward": {"name": "temporal-flicker", "weights": {"beauty": 1.0}}},
            "has no dimension 'beauty'; its dimensions",
        ),
        ({"data": "nowhere.txt"}, "nowhere.txt is not a file"),
        ({"device": "gpu9"}, "device 'gpu9' is not available"),
    ],
    ids=str,
)
def test_wrong_recipes(refuses, recipe, no_model, changes, message):
    assert len(refuses("train", recipe(**changes), message=message).splitlines()) == 1


def test_an_unwritable_run_folder(refuses, recipe, no_model, tmp_path):
    (tmp_path / "run").write_text("a file")
    refuses(
        "train", recipe(), message=[f"the run folder {tmp_path / 'run'} cannot be written to", "give another --out"]
    )


@pytest.mark.parametrize("algorithm", ["realdpo", "sft"])
def test_clips_that_are_missing_uncaptioned_or_unreadable(refuses, recipe, no_model, material, tmp_path, algorithm):
    path, data = recipe(algorithm), tmp_path / "data"
    refuses("train", path, "--data", data, message=str(data))
    data.mkdir()
    refuses("train", path, "--data", data, message=str(data))
    for file in (material / "clips").iterdir():
        shutil.copy(file, data)
    (data / "1.txt").unlink()
    refuses("train", path, "--data", data, message="1.mp4")
    (data / "1.txt").write_text("a ball")
    (data / "2.mp4").write_bytes((data / "2.mp4").read_bytes()[:200])
    refuses("train", path, "--data", data, message=[str(data / "2.mp4"), "skip_bad"])


CRITIC = """
import torch
from besttake.types import Score

class Critic:
    name, dimensions, differentiable = "odd", ("oddness",), False
    def __call__(self, videos, prompts, fps=8.0):
        return Score({}, self.dimensions)

def load(path=None, device="cpu"):
    return Critic()
"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("torch.full((len(videos), 1), float('nan'))", ["critic odd returned nan for 'oddness'", "must be finite"]),
        ("torch.zeros(len(videos))", "critic odd returned scores of shape (1,), expected (1, 1)"),
    ],
)
def test_a_critic_that_gives_no_score_stops_before_anything_is_sampled(
    refuses, recipe, tmp_path, monkeypatch, values, message
):
    (tmp_path / "odd.py").write_text(CRITIC.format(values))
    monkeypatch.setattr(critics, "__path__", [*critics.__path__, str(tmp_path)])
    monkeypatch.setattr("besttake.algorithms.onlinevpo.generate", None)
    try:
        refuses("train", recipe(reward={"name": "odd"}), message=message)
    finally:
        sys.modules.pop("besttake.rewards.critics.odd", None)


def test_a_model_that_does_not_load(refuses, recipe):
    refuses("train", recipe(model="no-such-model"), message="there is no model folder 'no-such-model'")


def test_a_run_of_other_settings_in_the_folder(refuses, recipe, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_report", lambda *_: None)
    assert besttake_says(capsys, "train", recipe())[0] == 0
    refuses("train", recipe(), "--seed", "9", message=["contains a run with other settings", "give another --out"])


@pytest.mark.parametrize(
    "problem", [OSError("No space left on device"), FloatingPointError("the loss is nan")], ids=str
)
def test_a_failing_machine_has_status_1_and_says_what_is_safe(capsys, recipe, monkeypatch, problem):
    def fails(run, *arguments, update=Run.update, **numbers):
        if run.step == 1:
            raise problem
        return update(run, *arguments, **numbers)

    monkeypatch.setattr(Run, "update", fails)
    status, _, error = besttake_says(capsys, "train", recipe(), "--steps", "2")
    assert status == 1
    assert str(problem) in error
    assert "the same command resumes from step 1, in" in error


def test_ctrl_c_says_so_where_no_run_does(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "generate", interrupted)
    status, _, error = besttake_says(capsys, "generate")
    assert (status, error.strip()) == (130, "error: stopped")


def test_generate_score_and_train_on_the_pairs(capsys, model_folder, material, tmp_path, recipe, monkeypatch):
    samples, reward = tmp_path / "samples", ("--reward", "temporal-flicker")
    model = ("--model", model_folder("tiny-cogvideox"))
    command = ("generate", *model, "--out", samples, "--n", "2", "--count", "2", "--rollout.steps", "1")
    assert besttake_says(capsys, *command, "--prompts", material / "prompts.txt")[0] == 0
    listed = [json.loads(line) for line in (samples / "samples.jsonl").read_text().splitlines()]
    assert [row["videos"] for row in listed] == [["00000-0.mp4", "00000-1.mp4"], ["00001-0.mp4", "00001-1.mp4"]]
    height, width = listed[0]["size"]
    frames = len(read_video(samples / "00000-0.mp4"))
    with Image.open(samples / "samples.png") as sheet:  # a row a video, a pixel between pictures
        assert sheet.height / sheet.width == pytest.approx((4 * (height + 1) - 1) / (frames * (width + 1) - 1))
    pairs = samples / "pairs.jsonl"
    status, out, _ = besttake_says(capsys, "score", "--samples", samples / "samples.jsonl", *reward, "--out", pairs)
    assert status == 0
    assert "temporal flicker" in out
    status, out, _ = besttake_says(capsys, "score", "--samples", samples / "samples.jsonl", *reward, "--calibrate", "4")
    assert status == 0
    assert "margin 0." in out
    assert "pairs that flip" in out
    row = json.loads(pairs.read_text().splitlines()[0])
    assert {row["winner"], row["losers"][0]} == {"00000-0.mp4", "00000-1.mp4"}
    assert row["scores"]["temporal flicker"][0] > row["scores"]["temporal flicker"][1]
    monkeypatch.setattr(cli, "_report", lambda *_: None)
    path = recipe("offline_dpo", data=str(pairs), pairs_per_step=2)
    assert besttake_says(capsys, "train", path)[0] == 0
    assert (tmp_path / "run" / "adapter").is_dir()


def test_words_a_model_has_never_seen_are_named(capsys, recipe, model_folder, tmp_path, caplog):
    texts = {
        "mine": "a cat plays\na red ball falls",
        "validation": "a dog falls",
        "tests": "an owl falls\na red ball falls",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    files = {name: str(tmp_path / f"{name}.txt") for name in texts}
    validation = {"every": 1, "prompts": files["validation"], "rewards": ["dynamic-degree"], "rollout": {"steps": 1}}
    settings = {"data": files["mine"], "validation": validation, "evaluation": {"prompts": files["tests"], "count": 2}}
    with patch("besttake.commands.cli._report"):
        assert besttake_says(capsys, "train", recipe(**settings))[0] == 0
    said = [message.partition("words ")[2] for message in caplog.messages if "has no tokens for" in message]
    assert sorted(word.partition(",")[0] for word in said) == ["an", "cat", "dog"]
    assert any(word.startswith("cat, plays, in 1 of ") for word in said)
    caplog.clear()
    flags = ("--n", "1", "--count", "1", "--rollout.steps", "1")
    flags += ("--prompts", files["mine"], "--out", tmp_path / "samples")
    assert besttake_says(capsys, "generate", "--model", model_folder("tiny-cogvideox"), *flags)[0] == 0
    assert "cat, plays, in 1 of 1 prompts" in caplog.text


def test_generate_goes_on_where_it_was_killed(capsys, refuses, model_folder, material, tmp_path):
    def generate_command(folder, count):
        command = ["generate", "--model", model_folder("tiny-cogvideox"), "--prompts", material / "prompts.txt"]
        return [*command, "--out", folder, "--n", "1", "--count", count, "--rollout.steps", "1", "--rollout.batch", "1"]

    assert besttake_says(capsys, *generate_command(tmp_path / "whole", 2))[0] == 0
    broken = tmp_path / "broken"
    assert besttake_says(capsys, *generate_command(broken, 1))[0] == 0
    with (broken / "samples.jsonl").open("a") as rows:
        rows.write('{"prompt": "a sm')
    first = (broken / "00000-0.mp4").stat().st_mtime_ns
    assert besttake_says(capsys, *generate_command(broken, 2))[0] == 0
    assert (broken / "00000-0.mp4").stat().st_mtime_ns == first
    for file in ("samples.jsonl", "00001-0.mp4", "samples.png"):
        assert (broken / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    refuses(*generate_command(broken, 2), "--seed", "5", message="has samples of other settings, weights or prompts")
    (broken / "samples.yaml").unlink()
    refuses(*generate_command(broken, 2), message="has samples of other settings, weights or prompts")


def test_folders_of_videos_are_scored_by_every_critic_that_is_named(capsys, material, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "out", Console(width=400, markup=False, emoji=False, highlight=False))
    folder = tmp_path / "o[v2]"
    shutil.copytree(material / "clips", folder)
    critics = ("--reward", "temporal-flicker", "--reward=dynamic-degree")
    status, out, _ = besttake_says(capsys, "score", folder, *critics, "--device", "cpu")
    assert status == 0
    for critic in ("temporal-flicker/temporal flicker", "dynamic-degree/dynamic degree"):
        (line,) = (line for line in out.splitlines() if critic in line)
        assert str(folder) in line
        assert " 4 " in line


MISSING_VIDEO = '{"prompt": "a", "videos": ["gone.mp4"], "policy": "x", "size": [32, 32], "fps": 8}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no videos"),
        ('{"prompt": "a"}\n', 'line 1: "videos" is missing'),
        ("x\n", "line 1: not JSON"),
        ('{"prompt": "a"}\n' * 2, ["2 of 2 rows of", 'line 1: "videos"', 'line 2: "videos"']),
        (MISSING_VIDEO * 2, ["2 of 2 rows of", "line 1: ", "gone.mp4", "line 2: "]),
    ],
)
def test_lists_of_samples_that_are_none(refuses, tmp_path, content, message):
    (tmp_path / "samples.jsonl").write_text(content)
    refuses("score", "--samples", tmp_path / "samples.jsonl", "--reward", "temporal-flicker", message=message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("generate", "--n", "0"), "n is 0"),
        (("generate", "--rollout.frames", "0"), "rollout.frames is 0"),
        (("score", "--samples", "samples.jsonl", "--margin", "-1"), "margin is -1.0"),
        (("score", "--samples", "samples.jsonl", "--calibrate", "1"), "calibrate is 1"),
    ],
)
def test_settings_that_mean_nothing(refuses, flags, message):
    refuses(*flags, message=message)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"rewards": ["nobody"]}, "unknown critic 'nobody'"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt is not a file"),
        ({"count": 0}, "count is 0"),
        ({"rollout": {"height": 33}}, "33"),
        ({"rewards": ["heldout"]}, "critic heldout: videos have 4 frames, expected 8 or more"),
        ({"rollout": {"height": 32}}, "cannot sample clips of (4, 32, 16)"),
        ({"rewards": ["clipscore"]}, "critic clipscore"),
    ],
)
def test_what_could_not_be_measured_is_refused_before_training(refuses, recipe, tmp_path, evaluation, message):
    refuses("train", recipe(evaluation=evaluation), message=message)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_demo_prints_a_recipe(capsys, tmp_path):
    _, said, _ = besttake_says(capsys, "demo", "--print-config")
    (tmp_path / "again.yaml").write_text(said)
    assert replace(read_recipe(str(tmp_path / "again.yaml")), out=Path("runs/onlinevpo-tiny")) == read_recipe(cli.DEMO)


@pytest.fixture
def from_a_checkout(monkeypatch):
    """besttake is not installed: it is run from its sources, with PYTHONPATH."""
    found = importlib.metadata.Distribution.from_name

    def from_name(name):
        if name == "besttake":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", from_name)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("besttake")


@pytest.mark.usefixtures("from_a_checkout")
def test_training_ends_in_a_measured_report(capsys, recipe, material, tmp_path):
    """On a model of another size than the world's, only the critics of any clip are used."""
    evaluation = {"prompts": str(material / "prompts.txt"), "count": 2, "shown": 1, "rollout": {"steps": 1}}
    reward = {"name": "temporal-flicker", "cache": str(tmp_path / "scores")}  # whose keys hold the version
    status, out, _ = besttake_says(capsys, "train", recipe(evaluation=evaluation, reward=reward))
    assert status == 0
    assert "dynamic degree" in out
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {"before", "after", "about"}
    assert summary["about"]["clips"] == 2
    page = (run / "report.html").read_text()
    assert "Training critic" in page
    assert f"Made by besttake {__version__}" in page
    status, out, _ = besttake_says(capsys, "report", run, "--rewards", "dynamic-degree", "--shown", "1")
    assert status == 0
    again = json.loads((run / "summary.json").read_text())
    assert again["about"] == summary["about"]
    assert list(again["after"]) == ["reward/dynamic-degree/dynamic degree"]


def test_a_run_is_measured_on_its_own_prompts_at_its_own_size(capsys, recipe, material, model_folder, tmp_path):
    """And a report long after it too, by what lies in its folder."""
    data = tmp_path / "mine.txt"
    shutil.copy(material / "prompts.txt", data)
    flags = ("--rollout.height", "32", "--rollout.frames", "9", "--evaluation.rollout.frames", "5")
    model = str(model_folder("tiny-wan"))
    status, out, error = besttake_says(capsys, "train", recipe(data=str(data), model=model), *flags)
    assert status == 0, error
    run = tmp_path / "run"
    about = json.loads((run / "summary.json").read_text())["about"]
    assert (about["prompts"], about["clips"], about["trained_on"], about["held_out"]) == (str(data), 4, 4, False)
    assert "all of them used in training" in (run / "report.html").read_text()
    assert "Only critics' scores were measured" in out
    clip = read_video(run / "evaluation" / "after" / "00.mp4")
    assert len(clip) == 5
    assert clip.shape[-2] == 2 * clip.shape[-1]
    data.unlink()
    assert besttake_says(capsys, "report", run, "--count", "2")[0] == 0
    again = json.loads((run / "summary.json").read_text())["about"]
    assert again == about | {"clips": 2, "trained_on": 2}


def test_a_run_on_real_clips_is_measured_against_them(capsys, recipe, material, tmp_path):
    status, _, error = besttake_says(capsys, "train", recipe("sft"))
    assert status == 0, error
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["real"].keys() == summary["before"].keys()
    assert summary["about"]["prompts"] == str(material / "clips")


def test_a_run_of_an_earlier_version_is_measured_as_its_config_says(capsys, recipe, tmp_path):
    """All its settings of validation and evaluation are there, those that were left out as the defaults of then."""
    assert besttake_says(capsys, "train", recipe())[0] == 0
    run = tmp_path / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    plain = {"name": "none", "threshold": 0.1, "every": 3}
    rollout = dict.fromkeys(("steps", "guidance", "frames", "height", "width", "asked", "decoded"))
    rollout |= {"batch": 16, "cache": plain, "guided": [0.0, 1.0], "shared": 0.0, "compile": False, "strength": 0.8}
    config["evaluation"] = {"prompts": "world-test", "count": 2, "seed": 777, "shown": 1, "rewards": []}
    config["evaluation"]["rollout"] = config["validation"]["rollout"] = rollout
    config["validation"] |= {"prompts": "world-validation", "rewards": ["world", "heldout", "dynamic-degree"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for file in ("evaluation_set.json", "summary.json"):
        (run / file).unlink()
    assert besttake_says(capsys, "report", run)[0] == 0
    assert json.loads((run / "summary.json").read_text())["about"]["prompts"] == "world-test"


def test_an_image_to_video_model_is_not_measured_on_prompts_without_first_frames(refuses, recipe, material, tmp_path):
    model = tmp_path / "i2v"
    tiny_models()["cogvideox-5b-i2v"].build().save_pretrained(model)
    refuses(
        *("train", recipe("sft", model=str(model), evaluation={"prompts": "world-test"})),
        message=("has no first frame", "(in evaluation.prompts)"),
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_demo_ends_in_the_promised_figures_and_page(capsys, tmp_path):
    small = "--steps 1 --prompts-per-step 1 --candidates 2 --draws 1 --rollout.steps 2 --validation.count 1"
    small += " --validation.rollout.steps 2 --evaluation.count 2 --evaluation.shown 1 --evaluation.rollout.steps 2"
    assert besttake_says(capsys, "demo", "--out", tmp_path / "run", *small.split())[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    first = ["flawed_share", "dynamic_degree", "object_area", "heldout_reward", "frechet_distance"]
    for column in ("before", "after", "real"):
        assert list(summary[column])[:5] == first
        assert all(math.isfinite(value) for value in summary[column].values())
    assert summary["real"]["heldout_reward"] > summary["before"]["heldout_reward"]
    page = (tmp_path / "run" / "report.html").read_text()
    titles = ("Training critic: world", "Held-out critic", "Winner and loser error", "Margin", "Implicit accuracy")
    for title in (*titles, "Drift", "Dynamic degree", "Ties", "Score spread"):
        assert f"<b>{title}</b>" in page, title


REAL_CLIPS = ROOT.parent / "shared" / "real_clips"


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the real clips are not shipped")
def test_realdpo_trains_on_real_clips(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_report", lambda *_: None)
    small = ["--steps", "1", "--negatives", "1", "--rollout.steps", "1", "--validation.every", "0"]
    out = tmp_path / "run"
    status, _, said = besttake_says(capsys, "train", "realdpo-tiny", "--data", REAL_CLIPS, "--out", out, *small)
    assert status == 0, said
    assert math.isfinite(json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["train/loss"])


def test_everything_that_is_no_code_is_packaged():
    package, settings = Path(besttake.__file__).parent, tomllib.loads((ROOT / "pyproject.toml").read_text())
    globs = settings["tool"]["setuptools"]["package-data"]["besttake"]
    packaged = {path for pattern in globs for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert not files - packaged


def test_a_report_of_nothing(refuses, tmp_path):
    refuses("report", tmp_path / "nothing", message="nothing is no folder; expected a run folder")


def test_world_clips_are_real_data(tmp_path):
    folder = write_clips(ClipsConfig(tmp_path / "clips", count=2))
    captions = [clip.caption for clip in find_clips(folder)]
    assert len(captions) == 2
    written = (folder / "00000.mp4").stat().st_mtime_ns
    write_clips(ClipsConfig(folder, count=2))
    assert (folder / "00000.mp4").stat().st_mtime_ns == written
    write_clips(ClipsConfig(folder, count=2, split="test"))
    assert [clip.caption for clip in find_clips(folder)] != captions


def test_usage_of_world(capsys):
    assert "clips|pretrain" in besttake_says(capsys, "world")[1]


def test_recipes_are_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert read_recipe(cli.DEMO).candidates >= 2
    assert Path(read_recipe(cli.DEMO).out).parts[0] == "runs"
