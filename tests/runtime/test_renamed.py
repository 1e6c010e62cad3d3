"""Settings and metrics by their former names."""

import dataclasses
import typing
from dataclasses import replace

import pytest
import yaml

from besttake.algorithms import algorithms
from besttake.commands.cli import read_recipe, with_flags
from besttake.models.policy import PolicyConfig
from besttake.runtime.configuration import fingerprint, to_dict
from besttake.runtime.renamed import REMOVED, RENAMED, new_name, with_new_metrics, with_new_names, with_old_names
from besttake.sampling.rollout import RolloutConfig

FINGERPRINTS = {  # of the shipped recipes, from before any setting was renamed: what their checkpoints hold
    "dpo-tiny": "337054d62a1cb08c",
    "onlinevpo-cogvideox-2b": "b515679b71bdbce2",
    "onlinevpo-opensora": "6feeff8a33569a82",
    "onlinevpo-tiny": "b7ab09bbea178319",
    "onlinevpo-wan-1.3b": "748feefd46031485",
    "onlinevpo-wan-5b": "db700c2baac94788",
    "realdpo-cogvideox-5b-i2v": "10909474ebdf13bc",
    "realdpo-tiny": "670cb205fbb26ab4",
    "realdpo-wan-1.3b": "68ee49558a897559",
    "sft-tiny": "fba1e8bcfca36c63",
}


@pytest.mark.parametrize("recipe", FINGERPRINTS)
def test_checkpoints_from_before_stay_the_runs_own(recipe):
    config = read_recipe(recipe)
    if recipe == "dpo-tiny":  # whose pairs were then in another folder
        config = replace(config, data="runs/takes/pairs.jsonl")
    assert fingerprint(config) == FINGERPRINTS[recipe]


@pytest.mark.parametrize(("former", "level"), [(True, "full"), (False, "none")])
def test_switches_that_became_words_by_their_former_values(tmp_path, caplog, former, level):
    policy, rollout = f"policy: {{gradient_checkpointing: {former}}}", f"rollout: {{compile: {former}}}"
    text = f"algorithm: onlinevpo\n{policy}\n{rollout}\nvalidation: {{{rollout}}}\n".replace(
        str(former), str(former).lower()
    )
    (tmp_path / "old.yaml").write_text(text)
    config = read_recipe(str(tmp_path / "old.yaml"))
    compiled = "always" if former else "never"
    assert (config.policy.gradient_checkpointing, config.rollout.compile) == (level, compiled)
    assert config.validation.rollout.compile == compiled
    assert f"policy.gradient_checkpointing: {str(former).lower()} -> {level}" in caplog.text
    assert PolicyConfig(gradient_checkpointing=former) == config.policy  # in a script
    assert RolloutConfig(compile=former) == config.rollout


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (["--policy.gradient-checkpointing"], "full"),
        (["--policy.gradient_checkpointing", "--steps", "3"], "full"),
        (["--policy.no-gradient-checkpointing"], "none"),
        (["--policy.gradient-checkpointing=true"], "full"),
        (["--policy.gradient-checkpointing", "selective"], "selective"),
        (["--policy.gradient-checkpointing=auto"], "auto"),
    ],
)
def test_flags_that_were_switches(flags, level):
    assert with_flags(read_recipe("sft-tiny"), flags, "besttake train").policy.gradient_checkpointing == level


def test_no_flags_are_no_fault():
    assert with_flags(read_recipe("sft-tiny"), [], "besttake train") == read_recipe("sft-tiny")


def test_a_level_that_is_none_is_refused():
    with pytest.raises(ValueError, match="gradient_checkpointing is 'some'; expected none, selective, full or auto"):
        PolicyConfig(gradient_checkpointing="some")
    with pytest.raises(ValueError, match="compile is 'yes'; expected auto, always or never"):
        RolloutConfig(compile="yes")


@pytest.mark.parametrize("recipe", FINGERPRINTS)
def test_shipped_recipes_have_no_former_names(recipe, caplog):
    read_recipe(recipe)
    assert not caplog.messages


def settings(kind, head=""):
    for field, hint in typing.get_type_hints(kind).items():
        yield f"{head}{field}"
        if dataclasses.is_dataclass(hint):
            yield from settings(hint, f"{head}{field}.")


def test_every_old_name_leads_to_a_setting_and_is_none():
    known = {name for module in algorithms().values() for name in settings(module.Config)}
    assert set(RENAMED.values()) <= known
    assert not known & (RENAMED.keys() | REMOVED.keys())


def test_a_recipe_by_its_old_names_is_the_recipe_with_one_warning(tmp_path, caplog):
    recipe = read_recipe("onlinevpo-tiny")
    values = with_old_names(to_dict(recipe), "onlinevpo")
    assert {"monitor", "guard", "draws", "by_turns"} <= values.keys()
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"algorithm": "onlinevpo", **values}))
    assert read_recipe(str(tmp_path / "old.yaml")) == recipe
    (warning,) = [message for message in caplog.messages if "former names" in message]
    assert "policy.average -> policy.ema_decay" in warning
    assert "rollout.shared (removed)" in warning


def test_settings_of_rollouts_are_renamed_wherever_they_are(caplog):
    values = {
        "monitor": {"rollout": {"asked": 3}, "guard": {"stop": True, "watch": ["world"]}},
        "evaluation": {"rollout": {"guided": [0, 1]}},
    }
    guard = {"stop": True, "critics": ["world"]}
    expected = {"validation": {"rollout": {"evaluations": 3}, "guard": guard}}
    assert with_new_names(values, "x.yaml") == expected | {"evaluation": {"rollout": {"guidance_interval": [0, 1]}}}
    assert new_name("monitor.guard.stop") == "validation.guard.stop"
    assert new_name("validation.guard.watch") == new_name("monitor.guard.watch") == "validation.guard.critics"
    assert with_old_names({"validation": {"guard": guard}}, "sft") == {"monitor": {"guard": values["monitor"]["guard"]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guard": 1.0, "dpop_weight": 1.0}, "'dpop_weight' is given twice, also by its former name 'guard'"),
        ({"rollout": {"shared": 0.25}}, "'rollout.shared' is 0.25, but this setting was removed"),
        ({"preview_at": 0.5, "preview_keeps": 2}, "'preview_at' is 0.5, but this setting was removed"),
    ],
)
def test_what_cannot_be_mapped_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        with_new_names(values, "x.yaml")


def test_flags_by_their_old_names(caplog):
    config = with_flags(read_recipe("onlinevpo-tiny"), ["--guard", "2", "--monitor.every=7", "--no-by-turns"], "train")
    assert (config.dpop_weight, config.validation.every, config.offload_idle) == (2.0, 7, False)
    assert "--guard was renamed to --dpop-weight" in caplog.text
    assert "--no-by-turns was renamed to --no-offload-idle" in caplog.text
    guarded = with_flags(config, ["--validation.rewards", "world", "--validation.guard.watch", "world"], "train")
    assert guarded.validation.guard.critics == ("world",)
    assert with_flags(config, ["--draws", "3"], "train").timesteps_per_pair == 3
    with pytest.raises(ValueError, match=r"--rollout\.shared was removed"):
        with_flags(config, ["--rollout.shared", "0.5"], "train")


def test_columns_of_older_runs_are_read_by_todays_names():
    row = {"step": 1, "loss": 0.7, "reward": 2.0, "reward/world": 3.0, "monitor/world/text alignment": 1.0}
    expected = {"step": 1, "train/loss": 0.7, "reward/mean": 2.0, "reward/world": 3.0, "eval/world/text alignment": 1.0}
    assert with_new_metrics(row) == expected
