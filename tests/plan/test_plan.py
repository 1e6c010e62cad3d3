import json
import math
from dataclasses import replace

import pytest

from besttake.algorithms.realdpo import Config as RealDPO
from besttake.commands.cli import main, read_recipe
from besttake.plan import PlanConfig, hours, make_plan
from besttake.plan.meter import Phase
from besttake.plan.table import verdict


def test_a_recipe_is_planned_from_the_command_line(small_model, capsys):
    flags = ["--card", "4090", "--json", "--rollout.steps", "2", "--validation.every", "0", "--evaluation.count", "2"]
    flags += ["--measure", "--prompts-per-step", "1", "--candidates", "2", "--device", "cpu"]
    assert main(["plan", "onlinevpo-tiny", "--model", small_model("tiny-cogvideox"), *flags]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    assert plan["card"] == "RTX-4090"
    assert {"sample", "decode", "score", "train", "evaluate"} <= plan["phases"].keys()
    assert plan["measured"]["train"]["peak"] == pytest.approx(plan["phases"]["train"]["peak"], rel=0.15)
    assert plan["seconds_of_a_step"] == pytest.approx(
        sum(phase["seconds"] for name, phase in plan["phases"].items() if name != "evaluate")
    )


def test_users_mistakes_have_plain_messages(capsys):
    assert main(["plan", "onlinevpo-tiny", "--card", "voodoo"]) == 2
    assert main(["plan", "nothing"]) == 2
    message = capsys.readouterr().err
    assert "no card 'voodoo'" in message
    assert "no recipe 'nothing'" in message
    with pytest.raises(ValueError, match="gpus is 0"):
        PlanConfig(gpus=0)


def test_verdicts(small_model):
    config = replace(read_recipe("onlinevpo-tiny"), model=small_model("tiny-cogvideox"), steps=1)
    config = replace(config, validation=replace(config.validation, every=0), rollout=replace(config.rollout, steps=2))
    plan = make_plan(config, PlanConfig("H100", reserve=0))
    assert verdict(plan).startswith("fits on H100")
    assert "still too much" in verdict(replace(plan, room=1.0))


def test_hours():
    second = {name: Phase(name, seconds=1.0) for name in ("sample", "train", "encode", "validate", "evaluate")}
    config = RealDPO(data="nowhere", steps=3600, clips_per_step=2, regenerate_every=10)
    config = replace(config, validation=replace(config.validation, every=1800))
    config = replace(config, evaluation=replace(config.evaluation, count=32))  # two batches of 16, before and after
    found = hours(config, second, gpus=4)
    assert found == {
        "encoding": 2.0,  # as many clips as the steps take: it is not known how many there are
        "sampling": 4.0,
        "training": 4.0,
        "validation": 4 * 3 / 3600,
        "evaluation": 8 / 3600,  # two cards evaluate a batch each, before and after, and two idle
    }


def test_an_evaluation_has_no_more_prompts_than_its_list(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a ball, number {number}" for number in range(32)))
    config = RealDPO(data="nowhere", steps=1)
    evaluation = replace(config.evaluation, count=128, prompts=str(tmp_path / "prompts.txt"))
    found = hours(replace(config, evaluation=evaluation), {"evaluate": Phase("evaluate", seconds=1.0)}, gpus=1)
    assert found["evaluation"] == 4 / 3600  # two batches of 16, before and after
    evaluation = replace(evaluation, count=24)
    found = hours(replace(config, evaluation=evaluation), {"evaluate": Phase("evaluate", seconds=1.0)}, gpus=1)
    assert found["evaluation"] == 3 / 3600


def test_hours_of_clips_that_come_twice_before_their_negatives_are_regenerated(material):
    second = {name: Phase(name, seconds=1.0) for name in ("sample", "train", "encode", "validate", "evaluate")}
    config = RealDPO(data=str(material / "clips"), steps=3600, clips_per_step=2, regenerate_every=10)
    found = hours(config, second, gpus=1)
    assert math.isclose(found["sampling"], 4 / 20)  # four clips' negatives serve twenty, ten steps of two
    assert math.isclose(found["encoding"], 4 / 3600)
