"""What commands list without an argument: recipes, critics, cards; read from their files, without importing PyTorch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from typing import Any

from rich.table import Table

PACKAGE = Path(__file__).parents[1]
RECIPES = PACKAGE / "recipes"


@dataclass(frozen=True)
class RecipeFacts:
    """What the head of a recipe's file says of it.

    Attributes:
        memory: of the GPU, or of the machine where it needs none.
        hours: on one GPU, of the kind it names.
    """

    name: str
    title: str
    paper: str
    memory: str
    hours: str


@dataclass(frozen=True)
class CriticFacts:
    """What a critic's file says of it.

    Attributes:
        licence: of its weights; "" where another server has them.
        memory: GB of its weights.
    """

    name: str
    measures: str
    licence: str
    memory: float


def recipes() -> list[RecipeFacts]:
    """The shipped recipes, by name."""
    return [_recipe(file) for file in sorted(RECIPES.glob("*.yaml"))]


def critics() -> list[CriticFacts]:
    """The shipped critics, by name."""
    files = [*(PACKAGE / "rewards" / "critics").glob("*.py"), PACKAGE / "rewards" / "remote" / "judge.py"]
    found = [_critic(file) for file in files if file.name != "__init__.py"]
    return sorted([*found, *map(_judge, (PACKAGE / "rewards" / "judges").glob("*.yaml"))], key=lambda one: one.name)


def recipe_table() -> Table:
    table = _table("recipe", "what it is", "paper", "memory", "hours")
    for recipe in recipes():
        table.add_row(recipe.name, recipe.title, recipe.paper, recipe.memory, recipe.hours)
    return table


def critic_table() -> Table:
    table = _table("critic", "what it measures", "licence of its weights", "GB")
    for critic in critics():
        table.add_row(
            critic.name,
            critic.measures,
            critic.licence or "the served model's own",
            f"{critic.memory:g}" if critic.memory else "",
        )
    return table


def card_table() -> Table:
    cards = run_path(str(PACKAGE / "plan" / "cards.py"))["CARDS"]
    table = _table("card", "GiB", "TFLOP/s in bfloat16", "TB/s of memory")
    for card in cards.values():
        table.add_row(card.name, f"{card.memory:.0f}", f"{card.half:g}", f"{card.bandwidth:g}")
    return table


def _table(name: str, *others: str) -> Table:
    table = Table(box=None)
    table.add_column(name, no_wrap=True)
    for other in others:
        table.add_column(other, overflow="fold")
    return table


def _recipe(file: Path) -> RecipeFacts:
    head = file.read_text(encoding="utf-8")
    facts = dict(re.findall(r"^# (Paper|Memory|Hours): +(.*)$", head, re.MULTILINE))
    title = re.split(r"[.:;,](?= |$)", head.splitlines()[0].lstrip("# "))[0]
    paper = re.search(r"arXiv [\d.]+\d", facts.get("Paper", ""))
    return RecipeFacts(file.stem, title, paper[0] if paper else "", facts.get("Memory", ""), facts.get("Hours", ""))


def _critic(file: Path) -> CriticFacts:
    """A critic by its source: its docstring's first line, and the `CriticCard` that it makes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    measures = re.sub(r" \(.*?\)|\.$", "", first).removeprefix("Analytic critic: ")
    licence, memory = "", 0.0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "CriticCard":
            named = {word.arg: word.value for word in node.keywords} | dict(
                zip(("source", "licence"), node.args, strict=False)
            )
            licence, memory = _constant(named.get("licence"), licence), _constant(named.get("memory"), memory)
    return CriticFacts(file.stem.replace("_", "-"), measures, licence, memory)


def _judge(file: Path) -> CriticFacts:
    """A judge by its file: what it scores, by the first line."""
    text = file.read_text(encoding="utf-8")
    dimensions = re.search(r"^dimensions: \{(.*)\}", text, re.MULTILINE)
    measures = ", ".join(re.findall(r"([^,{}\[\]]+): \[", dimensions[1] if dimensions else ""))
    name = re.sub(r" \(.*", "", text.splitlines()[0].lstrip("# "))
    return CriticFacts(
        file.stem.replace("_", "-"), f"{name}, a judge:{' ' if measures else ''}{measures.strip()}", "", 0.0
    )


def _constant(node: ast.expr | None, otherwise: Any) -> Any:
    return node.value if isinstance(node, ast.Constant) else otherwise
