"""`import besttake as bt`: each function gives as data what its command says, and prints nothing."""

import importlib
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import besttake as bt
from besttake import api
from besttake.commands.cli import read_recipe
from besttake.data.video import write_video
from besttake.sampling.rollout import RolloutConfig

PROMPTS = ["a red ball", "a large blue square"]


def test_the_import_is_fast_and_the_names_are_there():
    code = "import sys, besttake as bt; assert 'torch' not in sys.modules; assert set(bt.__all__) <= set(dir(bt))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_functions_plan_and_report_stand_before_the_folders():
    importlib.import_module("besttake.plan.cards")
    importlib.import_module("besttake.report.chart")
    assert bt.plan is api.plan
    assert bt.report is api.report


WRONG = [
    (lambda: bt.train(3), "recipe is 3; expected the name of a recipe"),
    (lambda: bt.plan(None), "recipe is None"),
    (lambda: bt.train("onlinevpo-tiny", on_step=3), "on_step is 3; expected a function"),
    (lambda: bt.load_model(dtype="float99"), "dtype is 'float99'; expected one of 'float32', 'bfloat16'"),
    (lambda: bt.load_model(quantize="int3"), "quantize is 'int3'; expected one of"),
    (lambda: bt.load_model(Path("nowhere")), "no model folder 'nowhere'"),
    (lambda: bt.generate("tiny-cogvideox", []), "0 prompts with n 1 make no video"),
    (lambda: bt.generate("tiny-cogvideox", "a red ball", n=0), "1 prompts with n 0 make no video"),
    (lambda: bt.generate(3, "a red ball"), "model is 3; expected a model"),
    (lambda: bt.score(lambda videos, prompts, fps: 1, torch.zeros(1, 2, 3, 8, 8), "a"), "a critic has them all"),
    (lambda: bt.score("world", [], []), "0 videos but 0 prompts"),
    (lambda: bt.score("world", Path("nowhere.mp4"), "a red ball"), "nowhere.mp4 is not a file"),
    (lambda: bt.score("world", torch.zeros(1, 2, 3, 8, 8), "a", fps=-1), "fps is -1"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_a_value_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_name_is_documented():
    assert set(bt.__all__) == set(api.__all__)
    for name in bt.__all__:
        assert getattr(bt, name) is getattr(api, name)
        assert inspect.getdoc(getattr(bt, name)), name
    for function in (bt.train, bt.plan, bt.evaluate, bt.report, bt.generate, bt.score):
        assert "Returns:" in inspect.getdoc(function)
        assert "Raises:" in inspect.getdoc(function)
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        _ = bt.trane


def test_recipes_are_those_that_are_shipped():
    found = bt.recipes()
    assert "OnlineVPO" in found["onlinevpo-tiny"]
    assert all(read_recipe(name) for name in found)


@pytest.fixture
def quick(model_folder, material, tmp_path):
    """Settings of a run that takes a moment."""
    return {
        "model": str(model_folder("tiny-cogvideox")),
        "data": str(material / "prompts.txt"),
        "out": tmp_path / "run",
        "steps": 2,
        "candidates": 2,
        "prompts_per_step": 2,
        "rollout": RolloutConfig(steps=2, guidance=1.0),
        "policy": {"rank": 2},
        "validation": {"every": 0},
        "reward": {"name": "temporal-flicker"},
        "evaluation": {
            "count": 2,
            "shown": 1,
            "rewards": ("dynamic-degree",),
            "prompts": str(material / "prompts.txt"),
        },
    }


def test_train_trains_measures_and_reports_and_says_nothing(quick, capsys):
    run = bt.train("onlinevpo-tiny", **quick)
    assert run.path == quick["out"]
    assert run.steps_done == 2
    assert run.summary["before"].keys() == run.summary["after"].keys() != set()
    assert (run.path / "report.html").is_file()
    assert list(run.config["reward"]["weights"]) == []  # those of the recipe were of another critic
    assert run.config["policy"]["ema_decay"] == 0.95  # the recipe's, of a section of which another setting is changed
    assert capsys.readouterr().out == ""
    again = bt.evaluate(run.path, count=3)
    assert again.about["clips"] == 3
    assert bt.report(run.path) == run.path / "report.html"
    steps = []
    quick |= {"steps": 3, "on_step": lambda run, metrics: steps.append(run.step)}
    longer = bt.train("onlinevpo-tiny", **quick)  # resumes
    assert longer.steps_done == 3
    assert steps == [3]
    assert capsys.readouterr().out == ""


def test_settings_that_are_none_are_named_before_anything_is_done(tmp_path):
    for settings, message in (
        ({"rolout": {}}, r"unknown key 'rolout'; did you mean 'rollout'"),
        ({"rollout": {"step": 4}}, r"unknown key 'rollout.step'; did you mean 'steps'"),
        ({"steps": "many"}, r"'steps' is 'many' \(str\), expected a whole number"),
        ({"reward": {"name": "world", "critics": {"world": {}}}}, r"give only one of them"),
        (
            {"guard": 1.0, "dpop_weight": 2.0},
            r"the call: 'dpop_weight' is given twice, also by its former name 'guard'",
        ),
        ({"monitor": {"evry": 2}}, r"unknown key 'validation.evry'; did you mean 'every'"),
    ):
        with pytest.raises(ValueError, match=message):
            bt.train("onlinevpo-tiny", out=tmp_path / "run", **settings)
    with pytest.raises(ValueError, match="there is no recipe 'nothing'"):
        bt.train("nothing")
    assert not (tmp_path / "run").exists()


def test_a_config_is_a_recipe_too():
    config = replace(read_recipe("onlinevpo-tiny"), steps=7)
    changed = api._config(config, {"rollout": {"steps": 3}})
    assert (changed.steps, changed.rollout.steps, changed.rollout.guidance) == (7, 3, 1.0)


def test_generate_and_score(model_folder, tmp_path, capsys):
    model = bt.load_model(str(model_folder("tiny-cogvideox")))
    rollout = bt.generate(model, PROMPTS, n=2, steps=2)
    assert tuple(rollout.videos.shape) == (4, 4, 3, 16, 16)
    assert rollout.videos.abs().max() <= 1
    alone = bt.generate(bt.Policy(model), PROMPTS[1], steps=2).videos
    torch.testing.assert_close(alone, rollout.videos[2:3], atol=1e-4, rtol=1e-4)
    assert not torch.equal(bt.generate(model, PROMPTS[1], steps=2, seed=1).videos, rollout.videos[2:3])
    critic = bt.load_reward("temporal-flicker")
    score = bt.score(critic, rollout)
    assert score.dimensions == ("temporal flicker",)
    assert torch.equal(bt.score("temporal-flicker", rollout.videos, rollout.prompts).values, score.values)
    files = [tmp_path / f"{i}.mp4" for i in range(4)]
    for file, video in zip(files, rollout.videos, strict=True):
        write_video(file, video, 8)
    torch.testing.assert_close(bt.score(critic, files, rollout.prompts).values, score.values, atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="4 videos but 1 prompts"):
        bt.score(critic, files, ["a"])
    with pytest.raises(ValueError, match="prompts are missing"):
        bt.score(critic, rollout.videos)
    with pytest.raises(ValueError, match="unknown key 'step'"):
        bt.generate(model, PROMPTS, step=2)
    assert capsys.readouterr().out == ""


def test_an_adapter_is_loaded_with_its_model(model_folder, tmp_path):
    policy = bt.Policy(bt.load_model(str(model_folder("tiny-cogvideox"))))
    for name, weight in policy.trainable.items():
        weight.data += 0.1 * ("lora_B" in name)
    policy.save(tmp_path / "adapter")
    adapted = bt.load_model(str(model_folder("tiny-cogvideox")), adapter=tmp_path / "adapter")
    ours, theirs = (bt.generate(policy_, PROMPTS, steps=1).latents for policy_ in (policy, adapted))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_plan_is_of_the_recipe_with_its_settings(monkeypatch):
    monkeypatch.setattr(api, "make_plan", lambda config, plan_config: (config, plan_config))
    config, plan_config = bt.plan("sft-tiny", card="A100", gpus=2, steps=10)
    assert (config.steps, config.clips_per_step, plan_config.card, plan_config.gpus) == (10, 8, "A100", 2)


def test_other_critics_come_without_the_weights_of_the_recipes():
    config = api._config("onlinevpo-tiny", {"reward": {"critics": {"world": {}, "dynamic-degree": {}}}})
    assert config.reward.chosen == {"world": {}, "dynamic-degree": {}}
    assert api._config("onlinevpo-tiny", {"reward": {"combine": "sum"}}).reward.weights


def test_a_folder_that_is_no_run_is_named():
    for function in (bt.report, bt.evaluate):
        with pytest.raises(ValueError, match="expected a run folder"):
            function(Path("nowhere"))
