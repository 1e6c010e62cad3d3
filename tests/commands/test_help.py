"""Help that fits a screen, and a text for every setting."""

import dataclasses
import typing

import pytest

from besttake.algorithms import algorithms
from besttake.commands.cli import main
from besttake.commands.generate import ClipsConfig, GenerateConfig, PretrainConfig
from besttake.commands.help import ESSENTIAL, WIDTH, field_texts, help_text, settings
from besttake.commands.listings import recipes
from besttake.commands.replicate import ReplicateConfig
from besttake.commands.score import ScoreConfig
from besttake.evaluation.agreement import AgreementConfig
from besttake.evaluation.before_after import EvaluateConfig
from besttake.plan import PlanConfig
from besttake.rewards.remote.serving import ServeConfig

LINES = 60

COMMANDS = (ClipsConfig, GenerateConfig, PretrainConfig, ScoreConfig, AgreementConfig, EvaluateConfig, PlanConfig)
CONFIGS = [*(module.Config for module in algorithms().values()), *COMMANDS, ServeConfig, ReplicateConfig]


def dataclasses_in(hint):
    """Every dataclass in a type hint, those within it too."""
    found = {hint} if dataclasses.is_dataclass(hint) else set()
    inner = typing.get_type_hints(hint).values() if found else typing.get_args(hint)
    return found.union(*map(dataclasses_in, inner))


@pytest.mark.parametrize("kind", sorted(set().union(*map(dataclasses_in, CONFIGS)), key=lambda kind: kind.__qualname__))
def test_every_setting_has_a_text(kind):
    texts = field_texts(kind)
    for field in dataclasses.fields(kind):
        assert texts.get(field.name), f"{kind.__module__}.{kind.__qualname__}.{field.name} has no docstring"
        assert len(texts[field.name]) <= 2 * 120, f"{kind.__qualname__}.{field.name}: two lines at most"


RECIPES = [recipe.name for recipe in recipes()]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["train", recipe] for recipe in RECIPES),
        *(["train"], ["demo"], ["plan"], ["plan", RECIPES[0]], ["generate"], ["score"], ["report"]),
        *(["score", "--benchmark", "x"], ["serve"], ["serve", "world"], ["world"], ["world", "clips"]),
        *(["world", "pretrain"], ["replicate"], ["replicate", RECIPES[0]]),
        [],
    ],
    ids=" ".join,
)
def test_help_fits_a_screen(arguments, capsys):
    try:
        status = main([*arguments, "--help"])
    except SystemExit as stop:
        status = stop.code
    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert lines[0].startswith(f"usage: besttake {arguments[0]}" if arguments else "besttake ")
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__module__)
def test_essential_settings_are_explained_in_their_line(kind):
    for line in help_text(kind, "besttake x").splitlines():
        if line.startswith("  "):
            assert len(line.split()) > 2, line


def test_help_shows_present_values():
    (kind,) = (kind for kind in CONFIGS if kind.__module__.endswith("onlinevpo"))
    text = help_text(kind, "besttake train x", kind(data="mine.txt", tiling=True, minutes=2.5), everything=True)
    for shown in ("--data mine.txt ", "--tiling (on) ", "--minutes 2.5 ", "--rollout.guidance-interval 0 1 "):
        assert shown in text
    assert "--candidates" in text.partition("\nrun:")[0].partition("\nmethod:")[2]


def test_all_of_the_help_explains_the_rollout_once():
    (kind,) = (kind for kind in CONFIGS if kind.__module__.endswith("onlinevpo"))
    text = help_text(kind, "besttake train x", everything=True)
    assert text.count("guidance-interval") == 1
    assert "--validation.rollout and --evaluation.rollout have" in text
    assert "--rollout.guidance" in help_text(EvaluateConfig, "besttake report RUN"), "where there is no other"


def test_what_is_essential_is_there():
    found = {(setting.group, setting.name) for kind in CONFIGS for setting in settings(kind)}
    missing = {(group, name) for group, names in ESSENTIAL.items() for name in names} - found
    assert not missing
