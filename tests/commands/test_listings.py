"""What commands list without an argument, and how soon."""

import subprocess
import sys

import pytest

from besttake.commands.cli import main, read_recipe
from besttake.commands.listings import critics, recipes
from besttake.plan.cards import CARDS
from besttake.rewards import critic_module, critic_names


def test_every_recipe_says_its_memory_and_hours():
    for recipe in recipes():
        assert recipe.title
        assert "B" in recipe.memory, recipe
        assert float(recipe.hours.split()[0]) > 0, recipe
        assert recipe.paper.startswith("arXiv ") or read_recipe(recipe.name).model == "tiny-cogvideox"


def test_critics_are_listed_as_their_cards_say():
    listed = {critic.name.replace("-", "_"): critic for critic in critics()}
    assert sorted(listed) == critic_names()
    for name, facts in listed.items():
        module = critic_module(name)
        kinds = [kind for kind in vars(module).values() if getattr(kind, "__module__", "") == module.__name__]
        cards = [kind.card for kind in kinds if isinstance(kind, type) and hasattr(kind, "card")]
        for card in [*cards, *([module.CARD] if hasattr(module, "CARD") else [])]:
            assert (facts.licence, facts.memory) == (card.licence, card.memory), name
        assert facts.measures


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "--card"]], ids=" ".join)
def test_cards_are_listed(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(card in out for card in CARDS)


def test_critics_are_listed(capsys):
    assert main(["serve"]) == 0
    out = capsys.readouterr().out
    assert all(critic.name in out for critic in critics())


@pytest.mark.parametrize("arguments", [["train"], ["serve"], ["plan"], ["--help"], ["--version"]], ids=" ".join)
def test_listings_are_quick(arguments):
    code = (
        "import resource, sys; from besttake.commands.cli import main; main(sys.argv[1:]); "
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    seconds, torch = done.stdout.splitlines()[-1].split()
    assert torch == "False"
    assert float(seconds) < 0.5
