"""Plan every recipe of a real model, and write the tables of docs/hardware.md.

python benchmarks/hardware.py --cards H100 RTX-4090
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from besttake.cli import RECIPES, read_recipe
from besttake.plan import Plan, PlanConfig, make_plan
from besttake.plan.table import BESIDE, GIB, times, verdict, whose

MARK = "<!-- what follows is written by benchmarks/hardware.py -->\n"


@dataclass(frozen=True)
class HardwareConfig:
    """Plan the recipes, and write what comes out behind the mark in a page."""

    cards: tuple[str, ...] = ("H100", "RTX-4090")
    """The first is the one whose phases are shown."""
    recipes: tuple[str, ...] = ()
    """By default all but those of the embedded models."""
    page: Path = Path("docs/hardware.md")


def section(recipe: str, plans: list[Plan]) -> str:
    """A recipe's phases on the first card, and the verdict for each."""
    first = plans[0]
    rows = [
        f"| {name} ({BESIDE.get(name, 'a step')}) | {phase.flops / 1e12:,.0f} | {phase.seconds:,.1f} "
        f"| {phase.peak / GIB:.1f} | {whose(phase)} |"
        for name, phase in first.phases.items()
    ]
    head = "| phase | TFLOP | seconds | peak GiB | whose |\n| --- | ---: | ---: | ---: | --- |\n"
    said = "\n".join(verdict(plan) for plan in plans)
    return f"## {recipe}\n\n{head}" + "\n".join(rows) + f"\n\n{first.card.name}, {times(first)}.\n\n```\n{said}\n```\n"


def main(config: HardwareConfig) -> None:
    recipes = config.recipes or sorted(path.stem for path in RECIPES.glob("*.yaml") if "tiny" not in path.stem)
    before = config.page.read_text().partition(MARK)[0]
    found = ""
    for recipe in recipes:
        plans = [make_plan(read_recipe(recipe), PlanConfig(card=card)) for card in config.cards]
        found += "\n" + section(recipe, plans)
        print(recipe, *(f"{plan.card.name} {plan.peak.peak / GIB:.1f}" for plan in plans), flush=True)
        config.page.write_text(before + MARK + found)


if __name__ == "__main__":
    main(tyro.cli(HardwareConfig))
