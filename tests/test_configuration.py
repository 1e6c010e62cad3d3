from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml

from besttake.algorithms import algorithms
from besttake.cli import RECIPES, read_recipe
from besttake.configuration import fingerprint, from_dict, read_yaml, to_dict, to_yaml, write_config


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
    "weights": {"good looks": 1},
    "loud": True,
    "inner": {"rate": 1, "kind": "fast"},
}


def test_plain_values_become_the_dataclass():
    expected = Outer(7, Path("there"), 2.0, ("x", "y"), (0.0, 1.0), {"good looks": 1.0}, True, Inner(1.0, "fast"))
    found = from_dict(Outer, VALUES)
    assert found == expected
    assert isinstance(found.alpha, float)
    assert from_dict(Outer, {}) == Outer()


def test_a_config_survives_yaml():
    config = from_dict(Outer, VALUES)
    assert from_dict(Outer, yaml.safe_load(to_yaml(config))) == config
    assert next(iter(yaml.safe_load(to_yaml(config, algorithm="x")))) == "algorithm"


def test_numbers_as_yaml_misreads_them_are_numbers():
    assert from_dict(Outer, yaml.safe_load("{alpha: 1e-4, inner: {rate: 2E-3}}".lower())).alpha == 1e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "unknown key 'stepz'; did you mean 'steps'"),
        ({"inner": {"rat": 1}}, "unknown key 'inner.rat'; did you mean 'rate'"),
        ({"qqq": 1}, "unknown key 'qqq'; there are steps, out"),
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


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [", "just words"])
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
    for word in ("Paper:", "Hardware:", "Figures:"):
        assert any(word in line for line in header), word


def test_every_algorithm_has_a_recipe():
    named = {read_yaml(file)["algorithm"] for file in RECIPES.glob("*.yaml")}
    assert named == set(algorithms())


def test_the_fingerprint_tells_runs_apart_by_what_they_train_and_by_nothing_else():
    config = read_recipe("onlinevpo-tiny")
    same = replace(config, steps=1, minutes=2.0, out=Path("x"), save_every=3, device="cpu")
    assert fingerprint(same) == fingerprint(config)
    assert fingerprint(replace(config, monitor=replace(config.monitor, every=0))) == fingerprint(config)
    others = (replace(config, seed=5), replace(config, beta=1.0), replace(config, model="x"), read_recipe("sft-tiny"))
    assert len({fingerprint(other) for other in (config, *others)}) == 5


def test_runs_from_before_skip_bad_go_on():
    before = {"onlinevpo-tiny": "b7ab09bbea178319", "dpo-tiny": "337054d62a1cb08c"}  # as 0.1's first checkpoints tell
    assert {name: fingerprint(read_recipe(name)) for name in before} == before
    config = read_recipe("dpo-tiny")
    assert fingerprint(replace(config, skip_bad=True)) != fingerprint(config)


def test_plain_values_hold_no_path_and_no_tuple():
    assert to_dict(Outer())["out"] == "here"
    assert to_dict(Outer())["names"] == ["a"]
