"""Tables of recipes, critics and cards, read from their files without importing PyTorch."""

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
    """Facts from the header of a recipe's file.

    Attributes:
        memory: GPU memory, or RAM if it needs no GPU.
        hours: on one GPU of the named kind.
    """

    name: str
    title: str
    paper: str
    memory: str
    hours: str


@dataclass(frozen=True)
class CriticFacts:
    """Facts from a critic's source file.

    Attributes:
        licence: of its weights; "" if they are on another server.
        memory: size of its weights in GB.
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
    table = _table("recipe", "description", "paper", "memory", "hours")
    for recipe in recipes():
        table.add_row(recipe.name, recipe.title, recipe.paper, recipe.memory, recipe.hours)
    return table


def critic_table() -> Table:
    table = _table("critic", "measures", "licence of weights", "GB")
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
    table = _table("card", "GiB", "TFLOP/s (bfloat16)", "memory TB/s")
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
    """Facts of a critic from its source: the first line of the docstring, and its `CriticCard`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    measures = re.sub(r" \(.*?\)|\.$", "", first).removeprefix("Analytic critic: ")
    licence, memory = "", 0.0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "CriticCard":
            named = {keyword.arg: keyword.value for keyword in node.keywords} | dict(
                zip(("source", "licence"), node.args, strict=False)
            )
            licence, memory = _constant(named.get("licence"), licence), _constant(named.get("memory"), memory)
    return CriticFacts(file.stem.replace("_", "-"), measures, licence, memory)


def _judge(file: Path) -> CriticFacts:
    """Facts of a judge from its YAML file: its name in the first line, and its dimensions."""
    text = file.read_text(encoding="utf-8")
    dimensions = re.search(r"^dimensions: \{(.*)\}", text, re.MULTILINE)
    measures = ", ".join(re.findall(r"([^,{}\[\]]+): \[", dimensions[1] if dimensions else ""))
    name = re.sub(r" \(.*", "", text.splitlines()[0].lstrip("# "))
    return CriticFacts(
        file.stem.replace("_", "-"), f"{name}, a judge:{' ' if measures else ''}{measures.strip()}", "", 0.0
    )


def _constant(node: ast.expr | None, otherwise: Any) -> Any:
    return node.value if isinstance(node, ast.Constant) else otherwise
