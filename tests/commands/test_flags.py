"""Flags: what may be given once, what adds up, and mappings on the command line."""

from dataclasses import dataclass, field

import pytest
from tyro.conf import UseAppendAction

from besttake.commands.cli import read_recipe, with_flags
from besttake.commands.flags import from_flags, names


@dataclass(frozen=True)
class Part:
    rate: float = 0.5
    eight_bit: bool = False

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}")


@dataclass(frozen=True)
class Whole:
    count: int = 1
    loud: bool = True
    names: tuple[str, ...] = ()
    rewards: UseAppendAction[tuple[str, ...]] = ()
    weights: dict[str, float] = field(default_factory=dict)
    critics: dict[str, dict[str, float]] = field(default_factory=dict)
    part: Part = field(default_factory=Part)


def whole(line: str, **default) -> Whole:
    return from_flags(Whole, line.split(" ") if line else [], "x", Whole(**default))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--count 1 --count 2", r"^count is given 2 times \(--count, --count\); give it once"),
        ("--count=1 --count 2", r"^count is given 2 times \(--count, --count\); give it once"),
        ("--part.rate 1 --loud --part.rate=2", r"part\.rate is given 2 times"),
        (
            "--part.eight-bit --part.eight_bit",
            r"part\.eight_bit is given 2 times \(--part\.eight-bit, --part\.eight_bit\)",
        ),
        ("--part.eight_bit --part.no-eight-bit", r"part\.eight_bit is given 2 times"),
        ("--no-loud --loud", r"loud is given 2 times"),
        ("--names a --names b", "names is given 2 times.*followed by all its values"),
        ("--weights a 1 --weights b 2", "weights is given 2 times"),
        ("--critics a --critics b", "critics is given 2 times"),
    ],
)
def test_a_flag_given_twice_is_refused_in_every_spelling(line, message):
    with pytest.raises(ValueError, match=message):
        whole(line)


def test_flags_that_are_made_for_it_add_up():
    assert whole("--rewards a --count 3 --rewards=b").rewards == ("a", "b")


def test_negative_numbers_and_values_that_look_alike_are_no_flags():
    assert whole("--weights a -1 b -1").weights == {"a": -1.0, "b": -1.0}
    assert names(["--a.b-c=--a.b-c", "-1", "--", "x", "--no-d", "--e.no_f"]) == ["a.b_c", "d", "e.f"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b"], {"a": {}, "b": {}}),
        (["{a: {x y: 2}, b: {}}"], {"a": {"x y": 2.0}, "b": {}}),
        (['{"a": {"x": 1e-1}}'], {"a": {"x": 0.1}}),
        (["[a, b]"], {"[a, b]": {}}),
        ([], {}),
    ],
)
def test_critics_by_their_names_or_with_weights(values, expected):
    assert from_flags(Whole, ["--critics", *values], "x", Whole(critics={"old": {}})).critics == expected


def test_mappings_are_replaced_as_a_whole():
    assert whole("--weights a 1 b 2.5", weights={"c": 3.0}).weights == {"a": 1.0, "b": 2.5}
    assert from_flags(Whole, ["--weights", "{a: 1}"], "x").weights == {"a": 1.0}
    assert whole("", weights={"c": 3.0}).weights == {"c": 3.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["--weights", "a", "1", "b"], "expected a number after each name"),
        (["--weights", "a", "x"], "'a' is 'x'; expected a number"),
        (["--weights", "a", "1", "a", "2"], "'a' is given 2 times"),
        (["--critics", "a", "a"], "'a' is given 2 times"),
        (["--critics", "{a: {x: 1:30}}"], "'a.x' in line 1 is 1:30"),
    ],
)
def test_mappings_that_cannot_be_read(capsys, values, said):
    with pytest.raises(SystemExit):
        from_flags(Whole, values, "x")
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--part.rate inf", r"^part\.rate is inf; expected a finite number"),
        ("--part.rate -nan", r"^part\.rate is nan; expected a finite number"),
        ("--weights a 1e999", r"^weights\.a is inf; expected a finite number"),
        ("--part.rate -1", r"^part\.rate is -1\.0"),
    ],
)
def test_what_a_file_may_not_say_a_flag_may_not_either(line, message):
    with pytest.raises(ValueError, match=message):
        whole(line)


def test_critics_from_the_command_line_come_without_the_weights_of_the_recipes():
    recipe = read_recipe("onlinevpo-tiny")
    assert recipe.reward.weights
    both = with_flags(recipe, ["--reward.critics", "world", "heldout"], "x")
    assert both.reward.chosen == {"world": {}, "heldout": {}}
    again = with_flags(both, ["--reward.name", "dynamic-degree"], "x")
    assert again.reward.chosen == {"dynamic-degree": {}}
    assert with_flags(both, ["--reward.name", "world"], "x").reward.chosen == {"world": {}}
    assert with_flags(recipe, ["--reward.name", "world"], "x").reward == recipe.reward
    assert with_flags(recipe, ["--reward.critics", "{heldout: {a: 2}}"], "x").reward.chosen == {"heldout": {"a": 2.0}}
    vote = ["--reward.critics", "world", "heldout", "--reward.combine", "vote", "--reward.margins", "heldout", ".1"]
    voting = with_flags(recipe, vote, "x")
    assert voting.reward.margins == {"heldout": 0.1}
    assert with_flags(voting, ["--reward.critics", "world"], "x").reward.margins == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward.critics", "world", "--reward.name", "world"], "give only one of them"),
        (["--reward.critics", "world", "--reward.weights", "a", "1"], r"reward\.weights .* and critics are both given"),
    ],
)
def test_critics_that_contradict_each_other_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        with_flags(read_recipe("onlinevpo-tiny"), flags, "x")


def test_a_name_beside_critics_in_a_recipe_is_refused():
    recipe = read_recipe("onlinevpo-tiny")
    with pytest.raises(ValueError, match=r"name \('videoscore'\) and critics are both given; add it to critics"):
        type(recipe.reward)(name="videoscore", critics={"world": {}})


def test_a_list_of_names_behind_one_flag():
    assert with_flags(read_recipe("sft-tiny"), ["--validation.rewards", "a", "b"], "x").validation.rewards == ("a", "b")
