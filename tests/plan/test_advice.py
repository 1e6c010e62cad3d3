"""Switches that make a recipe fit: the cheapest that helps, and only as many as it takes."""

from dataclasses import replace

import pytest

from besttake.commands.cli import read_recipe
from besttake.plan import advice
from besttake.plan.advice import SWITCHES, Advice, advise, with_setting
from besttake.plan.meter import Phase
from tests.plan.test_steps import THROUGHPUT, measure, recipe


def test_where_it_does_not_fit_switches_are_turned_until_it_does(small_model):
    config = recipe(small_model("tiny-cogvideox"))
    phases = measure(config, THROUGHPUT, parts=("step",))
    before = phases["train"].peak
    assert advise(config, phases, before, THROUGHPUT) == []
    one, *others = advise(config, phases, 0.9 * before, THROUGHPUT)
    assert (one.setting, others) == ("policy.gradient_checkpointing", [])
    assert one.peak <= 0.9 * before
    turned = with_setting(config, one.setting, one.value)
    assert measure(turned, THROUGHPUT, parts=("step",))["train"].peak == one.peak


def test_switches_are_settings_of_the_recipes():
    tiny = read_recipe("onlinevpo-tiny")
    for setting, value, _ in SWITCHES:
        train = "full" if setting == "policy.reference_device" else "lora"
        changed = with_setting(replace(tiny, policy=replace(tiny.policy, train=train)), setting, value)
        for name in setting.split("."):
            changed = getattr(changed, name)
        assert changed == value


def test_only_what_concerns_the_fullest_phase_is_tried(monkeypatch):
    """Peaks of made-up phases: tiling alone brings the evaluation's encoding down."""
    tried = []

    def measured(config, throughput, gpus, parts, enough):
        tried.append(parts)
        found = {part: Phase(part, peak=5.0, owners={"activations": 5.0}) for part in parts}
        assert not enough(found)
        assert enough({"encode": phases["encode"]})  # as it was: what follows need not be measured
        return found

    monkeypatch.setattr(advice, "measure", measured)
    phases = {
        "encode": Phase("encode", peak=9.0, owners={"activations": 9.0}),
        "train": Phase("train", peak=3.0, owners={"activations": 3.0}),
    }
    found = advise(read_recipe("onlinevpo-tiny"), phases, 6.0, THROUGHPUT)
    assert found == [Advice("tiling", True, 5.0)]
    assert tried == [["encode"]]


def test_a_nested_setting_is_changed_in_a_copy():
    config = read_recipe("onlinevpo-tiny")
    changed = with_setting(config, "rollout.batch", 3)
    assert (changed.rollout.batch, changed.rollout.steps) == (3, config.rollout.steps)
    assert config.rollout.batch != 3
    with pytest.raises(TypeError):
        with_setting(config, "rollout.no_such", 1)
