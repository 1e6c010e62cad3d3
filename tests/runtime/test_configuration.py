import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml

from besttake.algorithms import algorithms
from besttake.commands.cli import RECIPES, read_recipe
from besttake.runtime.configuration import (
    check_finite,
    fingerprint,
    from_dict,
    read_yaml,
    to_dict,
    to_yaml,
    write_config,
)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["slow", "fast"] = "slow"


@dataclass(frozen=True)
class Outer:
    steps: int = 3
    out: Path = Path("here")
    alpha: float | None = None
    names: tuple[str, ...] = ("a",)
    betas: tuple[float, float] = (0.9, 0.99)
    weights: dict[str, float] = field(default_factory=dict)
    loud: bool = False
    inner: Inner = field(default_factory=Inner)


VALUES = {
    "steps": 7,
    "out": "there",
    "alpha": 2,
    "names": ["x", "y"],
    "betas": [0, 1],
    "weights": {"visual quality": 1},
    "loud": True,
    "inner": {"rate": 1, "kind": "fast"},
}


def test_plain_values_become_the_dataclass():
    expected = Outer(7, Path("there"), 2.0, ("x", "y"), (0.0, 1.0), {"visual quality": 1.0}, True, Inner(1.0, "fast"))
    found = from_dict(Outer, VALUES)
    assert found == expected
    assert isinstance(found.alpha, float)
    assert from_dict(Outer, {}) == Outer()


def test_a_config_survives_yaml():
    config = from_dict(Outer, VALUES)
    assert from_dict(Outer, yaml.safe_load(to_yaml(config))) == config
    assert next(iter(yaml.safe_load(to_yaml(config, algorithm="x")))) == "algorithm"


def test_numbers_as_yaml_misreads_them_are_numbers():
    assert from_dict(Outer, yaml.safe_load("{alpha: 1e-4}")).alpha == 1e-4
    assert from_dict(Outer, yaml.safe_load("{alpha: 2.5E4, inner: {rate: .5e1}}")) == Outer(
        alpha=25000.0, inner=Inner(5.0)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "unknown key 'stepz'; did you mean 'steps'"),
        ({"inner": {"rat": 1}}, "unknown key 'inner.rat'; did you mean 'rate'"),
        ({"qqq": 1}, "unknown key 'qqq'; known keys: steps, out"),
        ({3: 1}, "unknown key '3'"),
        ({"steps": "many"}, r"'steps' is 'many' \(str\), expected a whole number"),
        ({"steps": 1.5}, r"'steps' is 1.5 \(float\), expected a whole number"),
        ({"steps": True}, r"'steps' is True \(bool\), expected a whole number"),
        ({"steps": None}, r"'steps' is None"),
        ({"alpha": "x"}, "'alpha' is 'x'.*expected a number"),
        ({"inner": {"rate": True}}, "'inner.rate' is True.*expected a number"),
        ({"inner": {"kind": "quick"}}, "'inner.kind' is 'quick'.*expected one of slow, fast"),
        ({"inner": 3}, "'inner' is 3.*expected a mapping"),
        ({"names": "x"}, "'names' is 'x'.*expected a list"),
        ({"names": [1]}, r"'names\[0\]' is 1.*expected text"),
        ({"betas": [0.9]}, "'betas' .*expected a list of 2"),
        ({"weights": [1]}, "'weights' .*expected a mapping"),
        ({"weights": {"a": "much"}}, "'weights.a' is 'much'.*expected a number"),
        ({"loud": 1}, "'loud' is 1.*expected true or false"),
        ({"out": 5}, "'out' is 5"),
    ],
    ids=str,
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Outer, values)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("recipe", ["onlinevpo-tiny", "realdpo-tiny", "sft-tiny", "dpo-tiny"])
def test_no_setting_of_any_recipe_is_infinite_or_nan(recipe, number):
    config = read_recipe(recipe)
    floats = dict(_floats(to_dict(config)))
    assert {"optim.lr", "minutes", "rollout.strength", "validation.guard.chance", "optim.betas.1"} <= floats.keys()
    for key in floats:
        values = to_dict(config)
        _put(values, key.split("."), float(number))
        with pytest.raises(ValueError, match=rf"^{re.escape(key)}\b|^{re.escape(key.rpartition('.')[0])}\b"):
            from_dict(type(config), values)


def test_weights_of_critics_are_finite():
    for reward in ({"weights": {"a": math.nan}}, {"critics": {"world": {"a": math.inf}}}):
        with pytest.raises(
            ValueError, match=r"^reward\.(weights|critics\.world)\.a is (nan|inf); expected a finite number"
        ):
            from_dict(type(read_recipe("onlinevpo-tiny")), {"reward": reward})


def test_a_config_made_in_python_is_refused_too():
    with pytest.raises(ValueError, match=r"^inner\.rate is inf; expected a finite number"):
        check_finite(Outer(inner=Inner(rate=math.inf)))


@pytest.mark.parametrize("value", [10**400, "1e400", "9.9e999"])
def test_numbers_too_large_are_refused(value):
    with pytest.raises(ValueError, match=r"alpha.* expected a finite number"):
        from_dict(Outer, {"alpha": value})


def _floats(values, where=""):
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, (dict, list)):
            yield from _floats(value, f"{where}{key}.")
        elif isinstance(value, float):
            yield f"{where}{key}", value


def _put(values, path, new):
    for key in path[:-1]:
        values = values[key]
    values[int(path[-1]) if isinstance(values, list) else path[-1]] = new


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minutes: 1:30", "'minutes' in line 1 is 1:30, which YAML reads as a base-60 number"),
        ("a: 1\nminutes: 1:30.5", "'minutes' in line 2 is 1:30.5, .*base-60"),
        ("seed: 010", "'seed' in line 1 is 010, which YAML reads as an octal number"),
        ("seed: -017", "'seed' in line 1 is -017"),
        ("tiling: yes", "'tiling' in line 1 is yes, which YAML reads as true or false"),
        ("policy: {halve_on_oom: off}", "'policy.halve_on_oom' in line 1 is off"),
        ("dtype: No", "'dtype' in line 1 is No"),
        ("on: 1", "'on' in line 1 is on"),
        ("rewards: [world, on]", r"'rewards\[1\]' in line 1 is on"),
        ("steps: 1\nseed: 2\nsteps: 3", "'steps' is given twice, in lines 1 and 3; keep one"),
        ("optim:\n  lr: 1\n  lr: 1", "'optim.lr' is given twice, in lines 2 and 3"),
        ("reward: {weights: {a: 1, 'a': 1}}", "'reward.weights.a' is given twice"),
        ("a: [{b: 1, b: 2}]", r"'a\[0\].b' is given twice"),
    ],
)
def test_yaml_with_two_readings_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"recipe\.yaml cannot be read: {message}"):
        read_yaml(path)


def test_yaml_with_one_reading_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "a: True\nb: '010'\nc: \"yes\"\nd: 0\ne: 1_000\nf: 1e-4\ng: 0.5\nh: !!str 1:30\ni: [no-one, '1:30']\nj:"
    )
    assert read_yaml(path) == {
        "a": True, "b": "010", "c": "yes", "d": 0, "e": 1000, "f": "1e-4", "g": 0.5, "h": "1:30",
        "i": ["no-one", "1:30"],
        "j": None,
    }  # fmt: skip


def test_a_dataclass_that_refuses_is_named_in_full():
    values = {"validation": {"rollout": {"cache": {"every": 1}}}}
    with pytest.raises(ValueError, match=r"^validation\.rollout\.cache\.every is 1; expected 2 or more$"):
        from_dict(type(read_recipe("sft-tiny")), values)


def test_only_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"^evaluation\.count is 1; expected 2 or more$"):
        from_dict(type(read_recipe("sft-tiny")), {"evaluation": {"count": 1, "shown": 12}})


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [", "just words", "a: 1\n---\nb: 1", "a: =", "a: @"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        read_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.yaml cannot be read"):
        read_yaml(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("recipe", sorted(file.stem for file in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_is_read_and_written_the_same(tmp_path, recipe):
    config = read_recipe(recipe)
    write_config(config, tmp_path / "config.yaml")
    assert read_recipe(str(tmp_path / "config.yaml")) == config
    header = [line for line in (RECIPES / f"{recipe}.yaml").read_text().splitlines() if line.startswith("#")]
    for part in ("Paper:", "Hardware:", "Figures:"):
        assert any(part in line for line in header), part


def test_every_algorithm_has_a_recipe():
    named = {read_yaml(file)["algorithm"] for file in RECIPES.glob("*.yaml")}
    assert named == set(algorithms())


def test_the_fingerprint_distinguishes_runs_by_what_they_train_and_by_nothing_else():
    config = read_recipe("onlinevpo-tiny")
    same = replace(config, steps=1, minutes=2.0, out=Path("x"), save_every=3, device="cpu")
    assert fingerprint(same) == fingerprint(config)
    assert fingerprint(replace(config, validation=replace(config.validation, every=0))) == fingerprint(config)
    others = (replace(config, seed=5), replace(config, beta=1.0), replace(config, model="x"), read_recipe("sft-tiny"))
    assert len({fingerprint(other) for other in (config, *others)}) == 5


def test_runs_from_before_skip_bad_go_on():
    before = {"onlinevpo-tiny": "b7ab09bbea178319", "dpo-tiny": "337054d62a1cb08c"}  # as 0.1's first checkpoints tell
    config = replace(read_recipe("dpo-tiny"), data="runs/takes/pairs.jsonl")  # the recipe's pairs were there
    assert {"onlinevpo-tiny": fingerprint(read_recipe("onlinevpo-tiny")), "dpo-tiny": fingerprint(config)} == before
    assert fingerprint(replace(config, skip_bad=True)) != fingerprint(config)


def test_runs_from_before_the_references_warm_up_go_on_without_it():
    before = {"realdpo-tiny": "670cb205fbb26ab4", "realdpo-wan-1.3b": "68ee49558a897559"}
    assert {name: fingerprint(read_recipe(name)) for name in before} == before
    warm = replace(read_recipe("realdpo-tiny"), reference_warmup=True)
    assert fingerprint(warm) != before["realdpo-tiny"]
    fixed = replace(warm, reference="fixed")
    assert fingerprint(fixed) == fingerprint(replace(fixed, reference_warmup=False))


def test_plain_values_hold_no_path_and_no_tuple():
    assert to_dict(Outer())["out"] == "here"
    assert to_dict(Outer())["names"] == ["a"]
