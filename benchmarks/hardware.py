"""Plan every recipe of a real model, and write the tables of docs/hardware.md.

python benchmarks/hardware.py --cards H100 RTX-4090
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from besttake.commands.cli import RECIPES, read_recipe
from besttake.plan import Plan, PlanConfig, make_plan
from besttake.plan.advice import advise
from besttake.plan.cards import find_card
from besttake.plan.meter import Throughput
from besttake.plan.table import GIB, UNITS, owners_of, times, verdict

MARK = "<!-- what follows is written by benchmarks/hardware.py -->\n"


@dataclass(frozen=True)
class HardwareConfig:
    """Plan the recipes, and write what comes out behind the mark in a page."""

    cards: tuple[str, ...] = ("H100", "RTX-4090")
    """The first is the one whose phases are shown."""
    recipes: tuple[str, ...] = ()
    """By default all but those of the embedded models."""
    page: Path = Path("docs/hardware.md")


def plans_of(config: Any, cards: tuple[str, ...]) -> list[Plan]:
    """The plan for the first card, and what it says of the memory of the others."""
    first = make_plan(config, PlanConfig(card=cards[0]))
    found = [first]
    for name in cards[1:]:
        card, defaults = find_card(name), PlanConfig()
        room = (card.memory - defaults.reserve) * GIB
        advice = advise(config, first.phases, room, Throughput(card, defaults.efficiency))
        found.append(replace(first, card=card, room=room, advice=advice))
    return found


def section(recipe: str, plans: list[Plan]) -> str:
    """A recipe's phases on the first card, and the verdict for each."""
    first = plans[0]
    rows = [
        f"| {name} | {UNITS.get(name, 'step')} | {phase.flops / 1e12:,.0f} | {phase.seconds:,.1f} "
        f"| {phase.peak / GIB:.1f} | {owners_of(phase)} |"
        for name, phase in first.phases.items()
    ]
    head = "| phase | per | TFLOP | seconds | peak GiB | GiB by owner |\n| --- | --- | ---: | ---: | ---: | --- |\n"
    verdicts = "\n".join(verdict(plan) for plan in plans)
    return (
        f"## {recipe}\n\n{head}" + "\n".join(rows) + f"\n\n{first.card.name}, {times(first)}.\n\n```\n{verdicts}\n```\n"
    )


def main(config: HardwareConfig) -> None:
    recipes = config.recipes or sorted(path.stem for path in RECIPES.glob("*.yaml") if "tiny" not in path.stem)
    before = config.page.read_text().partition(MARK)[0]
    found = ""
    for recipe in recipes:
        plans = plans_of(read_recipe(recipe), config.cards)
        found += "\n" + section(recipe, plans)
        print(recipe, *(f"{plan.card.name} {plan.peak.peak / GIB:.1f}" for plan in plans), flush=True)
        config.page.write_text(before + MARK + found)


if __name__ == "__main__":
    main(tyro.cli(HardwareConfig))
