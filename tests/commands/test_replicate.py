"""A replication from plan to result, killed where it may be, on a random model of a folder in place of the hub's."""

import json
import os
import signal
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree

import pytest
import torch
import yaml
from filelock import FileLock

from besttake.commands import replicate
from besttake.commands.cli import main
from besttake.models import load_model
from besttake.plan.advice import Advice
from besttake.plan.cards import Card
from besttake.replication.record import FILE, PLAN, RUN, read_record
from besttake.training.callbacks import callbacks
from tests.processes import launch
from tests.runs import adapter, rows

STAGES = [PLAN, "download", "train", "evaluate", "bundle"]


@pytest.fixture
def recipe(tmp_path, model_folder, material) -> Path:
    """A recipe of four steps on a random model."""
    values = {
        "algorithm": "onlinevpo",
        "model": str(model_folder("tiny-cogvideox")),
        "data": str(material / "prompts.txt"),
        "steps": 4,
        "save_every": 1,
        "candidates": 2,
        "prompts_per_step": 1,
        "reward": {"name": "temporal-flicker"},
        "rollout": {"steps": 1},
        "policy": {"rank": 2},
        "optim": {"lr": 1e-2, "warmup_steps": 1},
        "validation": {"every": 2, "count": 2, "rewards": ["dynamic-degree"]},
        "log": [],
    }
    path = tmp_path / "four-steps.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments) -> int:
    return main(["replicate", *map(str, arguments)])


def killed(command: list[str], at_step: int) -> None:
    """Run a command that is killed without a chance to save once so many steps are done."""

    def kill(trained, _):
        if trained.step == at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    del os.environ["WORLD_SIZE"], os.environ["RANK"], os.environ["LOCAL_RANK"]
    with callbacks(on_step=kill):
        main(command)


def test_from_plan_to_result(recipe, tmp_path, capsys):
    out = tmp_path / "result"
    assert run(recipe, "--out", out) == 0
    said = capsys.readouterr().out
    assert "no card on this machine: memory and hours are not checked" in said
    assert f"replication: {out / 'README.md'}" in said
    record = read_record(out)
    assert list(record.stages) == STAGES
    assert all(record.is_finished(stage) for stage in STAGES)
    assert [*record.sources] == [record.request["model"]]
    assert record.environments[0]["torch"] == torch.__version__
    for name in ("report.html", "samples.png", "config.yaml", "metrics.jsonl", "summary.json", "environment.txt"):
        assert (out / name).stat().st_size, name
    assert len(list((out / "evaluation" / "after").glob("*.mp4"))) == 4
    before, after = (json.loads((out / "summary.json").read_text())[column] for column in ("before", "after"))
    assert before["reward/temporal-flicker/temporal flicker"] != after["reward/temporal-flicker/temporal flicker"]
    load_model(record.request["model"]).load_lora(out / "adapter")
    assert str(tmp_path / "result") not in (out / "config.yaml").read_text(), "no paths of this machine"
    text = (out / "README.md").read_text()
    for part in (
        "# four-steps: a replication",
        "| training reward/temporal flicker |",
        f"besttake replicate {recipe} --out {out}",
        "| steps | 4 | 4 |",
        "| hours of training |  |",
        f"| torch | {torch.__version__} |",
        "![Curve 01](figures/01.svg)",
    ):
        assert part in text, part
    for figure in (out / "figures").glob("*.svg"):
        drawing = ElementTree.parse(figure).getroot()
        assert drawing.find(".//{http://www.w3.org/2000/svg}path") is not None, "browsers draw no path of HTML's"


def test_a_killed_training_resumes_and_ends_as_if_it_were_not(recipe, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(recipe, "--out", whole) == 0
    (ending,) = launch(1, killed, ["replicate", str(recipe), "--out", str(cut)], 3)
    assert ending.code == -signal.SIGKILL
    record = read_record(cut)
    assert record.is_finished("download")
    assert not record.is_finished("train")
    assert [path.name for path in sorted((cut / RUN / "checkpoints").iterdir())][-1] == "step-00000002"
    assert run(recipe, "--out", cut) == 0
    assert rows(cut / RUN) == rows(whole / RUN)
    for name, weight in adapter(whole / RUN).items():
        assert torch.equal(adapter(cut / RUN)[name], weight)
    numbers = (json.loads((folder / "summary.json").read_text())["after"] for folder in (whole, cut))
    assert next(numbers) == next(numbers)


@pytest.mark.parametrize(
    ("stopped", "finished"),
    [("load_once", STAGES[:1]), ("train_and_evaluate", STAGES[:2]), ("write_bundle", STAGES[:4])],
)
def test_it_goes_on_after_the_last_finished_stage(recipe, tmp_path, stopped, finished):
    out = tmp_path / "result"
    with patch.object(replicate, stopped, side_effect=KeyboardInterrupt):
        assert run(recipe, "--out", out) == 130
    before = read_record(out)
    assert [stage for stage in STAGES if before.is_finished(stage)] == finished
    assert run(recipe, "--out", out) == 0
    after = read_record(out)
    assert all(after.is_finished(stage) for stage in STAGES)
    for stage in finished:
        assert after.stages[stage] == before.stages[stage]
    with patch.object(replicate, "load_once", side_effect=AssertionError):
        assert run(recipe, "--out", out) == 0, "nothing is left to do"


def test_an_evaluation_that_fails_is_repeated_without_training(recipe, tmp_path, capsys):
    out = tmp_path / "result"
    with patch("besttake.commands.report.evaluate", side_effect=OSError("no space left")):
        assert run(recipe, "--out", out) == 1
    assert "run the same command again to evaluate it" in capsys.readouterr().err.replace("\n", " ")
    logged = rows(out / RUN)
    assert read_record(out).is_finished("train")
    assert run(recipe, "--out", out) == 0
    assert rows(out / RUN) == logged


def test_a_budget_chooses_and_keeps_its_choice(recipe, tmp_path, capsys):
    out = tmp_path / "result"
    size = ("--evaluation.count", "2", "--rollout.frames", "4", "--rollout.height", "16", "--rollout.width", "16")
    assert run(recipe, "--out", out, "--card", "4090", "--budget", "1e-7", *size) == 2
    said = capsys.readouterr().err
    assert "budget is 1e-07 hours, but 4 steps take" in said
    assert not (out / FILE).exists(), "what is refused leaves nothing behind"
    flags = ("--card", "4090", *size, "--budget", "2")
    with patch.object(replicate, "load_once", side_effect=KeyboardInterrupt):
        assert run(recipe, "--out", out, *flags) == 130
    record = read_record(out)
    assert [choice["setting"] for choice in record.choices] == ["minutes"]
    assert record.plan["card"] == "RTX-4090"
    assert record.plan["hours"]["evaluation"] > 0
    with patch.object(replicate, "within_budget", side_effect=AssertionError):
        assert run(recipe, "--out", out, *flags) == 0
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["minutes"] == record.choices[0]["value"] > 100
    assert "Chosen for a budget of 2 hours on RTX-4090:" in (out / "README.md").read_text()
    assert run(recipe, "--out", out, *flags[:-1], "3") == 2
    assert "different: budget" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_anything_is_downloaded(recipe, tmp_path, capsys):
    small = Card("small", 1.5, 1, 1, 1, 1)  # of which a plan leaves nothing
    with (
        patch.object(replicate, "card_at_hand", return_value=small),
        patch("besttake.replication.cards.advice", return_value=[Advice("tiling", True, 0.0)]),
        patch.object(replicate, "check_room", side_effect=AssertionError),
    ):
        assert run(recipe, "--out", tmp_path / "result") == 2
    said = capsys.readouterr().err
    assert "it does not fit on small: " in said
    assert "add --tiling (then 0.0 GiB)" in said
    assert not (tmp_path / "result" / FILE).exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--budget", "0"), "budget is 0.0; expected a number of hours above 0"),
        (("--budget", "3"), "there is no plan for a CPU; give --steps instead"),
        (("--card", "abacus"), "there is no card 'abacus'"),
        (("--data", "nowhere.txt"), "nowhere.txt is not a file"),
        (("--model", "someone/model"), "someone/model is not on this machine"),
        (("--candidates", "1"), "candidates is 1; expected 2 or more"),
        (("--evaluation.prompts", "nowhere.txt"), "nowhere.txt is not a file"),
    ],
    ids=str,
)
def test_bad_input(recipe, tmp_path, capsys, flags, message):
    assert run(recipe, "--out", tmp_path / "result", *flags) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "result" / RUN).exists()


def test_an_unknown_recipe(capsys):
    assert run("nothing") == 2
    assert "there is no recipe 'nothing'" in capsys.readouterr().err
    assert run("--budget", "3") == 2
    assert "give a recipe before the flags" in capsys.readouterr().err


def test_another_replication_in_the_folder(recipe, tmp_path, capsys):
    out = tmp_path / "result"
    with patch.object(replicate, "train_and_evaluate", side_effect=KeyboardInterrupt):
        assert run(recipe, "--out", out) == 130
    assert run(recipe, "--out", out, "--steps", "5") == 2
    assert "different: steps" in capsys.readouterr().err
    assert run("onlinevpo-tiny", "--out", out) == 2
    assert "holds another replication" in capsys.readouterr().err


def test_two_processes_do_not_share_a_folder(recipe, tmp_path, capsys):
    out = tmp_path / "result"
    out.mkdir()
    with FileLock(out / ".lock"):
        assert run(recipe, "--out", out) == 2
    assert "another process works in" in capsys.readouterr().err


def test_several_processes_are_refused(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(recipe, "--out", tmp_path / "result") == 2
    assert "runs on one card" in capsys.readouterr().err


def test_recipes_are_listed(capsys):
    assert main(["replicate"]) == 0
    said = capsys.readouterr().out
    assert "besttake replicate RECIPE [--budget HOURS]" in said
    assert "realdpo-wan-1.3b" in said
