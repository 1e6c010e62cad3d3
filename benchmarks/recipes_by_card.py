"""The table of docs/cards.md: each recipe for a real model on each class of graphics card, by `besttake plan`.

    python benchmarks/recipes_by_card.py            # minutes; plans that lie in --out already are kept

A recipe that does not fit is planned again with the settings that the plan suggests, so that its seconds are theirs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPES = (
    "onlinevpo-wan-1.3b",
    "onlinevpo-cogvideox-2b",
    "onlinevpo-opensora",
    "onlinevpo-wan-5b",
    "realdpo-wan-1.3b",
    "realdpo-cogvideox-5b-i2v",
)
CARDS = {"4090": "24 GB (RTX 4090)", "L40S": "48 GB (L40S)", "H100": "80 GB (H100)"}
PAGE = Path(__file__).parents[1] / "docs" / "cards.md"
MARK = "<!-- what follows is written by benchmarks/recipes_by_card.py -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/plans"), help="where each plan is kept as JSON")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    out, recipes = (vars(parser.parse_args())[name] for name in ("out", "recipes"))
    out.mkdir(parents=True, exist_ok=True)
    lines = ["| recipe | " + " | ".join(CARDS.values()) + " |", "| --- |" + " --- |" * len(CARDS)]
    for recipe in recipes:
        lines.append(f"| `{recipe}` | " + " | ".join(cell(recipe, card, out) for card in CARDS) + " |")
    head = PAGE.read_text().split(MARK)[0]
    PAGE.write_text(head + MARK + "\n\n" + "\n".join(lines) + "\n")


def cell(recipe: str, card: str, out: Path) -> str:
    """Peak memory, minutes of a step and hours of all steps; and the flags without which the recipe does not fit."""
    found, flags = plan(recipe, card, [], out), []
    if not found["fits"]:
        flags = [flag for advice in found["advice"] for flag in as_flag(advice["setting"], advice["value"])]
        found = plan(recipe, card, flags, out)
        if not found["fits"]:
            return f"does not fit ({gib(found)} GiB with all that helps)"
    minutes, hours = found["seconds_of_a_step"] / 60, sum(found["gpu_hours"].values())
    text = f"{gib(found)} GiB{evaluation(found)}, {minutes:.1f} min a step, {hours:.0f} h"
    return f"{text}, with `{' '.join(flags)}`" if flags else text


def plan(recipe: str, card: str, flags: list[str], out: Path) -> dict[str, Any]:
    """What `besttake plan` prints as JSON."""
    file = out / f"{' '.join([recipe, card, *flags])}.json"
    if not file.exists():
        command = [sys.executable, "-m", "besttake", "plan", recipe, "--card", card, "--json", *flags]
        file.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return json.loads(file.read_text())


def gib(found: dict[str, Any]) -> str:
    return f"{found['peak']['bytes'] / 2**30:.0f}"


def evaluation(found: dict[str, Any]) -> str:
    """The memory of the evaluation after training, where it is more than that of training."""
    peak = found["phases"]["evaluate"]["peak"]
    return f" ({peak / 2**30:.0f} in the evaluation)" if peak > found["peak"]["bytes"] else ""


def as_flag(setting: str, value: Any) -> list[str]:
    name = f"--{setting.replace('_', '-')}"
    return [name] if value is True else [name, str(value)]


if __name__ == "__main__":
    main()
