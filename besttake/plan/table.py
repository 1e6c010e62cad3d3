"""A plan as tables and sentences, and as JSON."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from besttake.plan import Plan
from besttake.plan.meter import Phase
from besttake.plan.steps import STEP

GIB = 2**30

UNITS = {"encode": "clip", "validate": "pass", "evaluate": "batch"}
"""What the costs of a phase outside the training step are per."""


def table(plan: Plan) -> Table:
    """A row per phase."""
    rows = Table("phase", "per", "TFLOP", "seconds", "peak GiB", "GiB by owner")
    for column in rows.columns[2:5]:
        column.justify = "right"
    for name, phase in plan.phases.items():
        numbers = f"{phase.flops / 1e12:,.1f}", f"{phase.seconds:,.2f}", f"{phase.peak / GIB:.1f}"
        rows.add_row(name, UNITS.get(name, "step"), *numbers, owners_of(phase))
    return rows


def measured(plan: Plan) -> Table:
    """The phases of one real step on this machine, next to the planned ones."""
    shown = Table("measured here", "seconds", "peak GiB", "planned GiB", "measured / planned")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, phase in plan.measured.items():
        if planned := plan.phases.get(name):
            seconds = "" if math.isnan(phase.seconds) else f"{phase.seconds:,.2f}"
            numbers = seconds, f"{phase.peak / GIB:.2f}", f"{planned.peak / GIB:.2f}"
            shown.add_row(name, *numbers, f"{phase.peak / planned.peak:.2f}")
    return shown


def owners_of(phase: Phase) -> str:
    """Memory by owner at the peak, largest first; below 1 % is left out."""
    owners = [(owner, size) for owner, size in phase.owners.most_common() if size > phase.peak / 100]
    return ", ".join(f"{owner} {size / GIB:.1f}" for owner, size in owners)


def verdict(plan: Plan) -> str:
    """Whether it fits, and a line for each setting to change if it does not."""
    peak, room, card = plan.peak.peak / GIB, plan.room / GIB, plan.card.name
    if peak <= room:
        return f"fits on {card}: peak {peak:.1f} of {room:.1f} GiB ({plan.peak.name}), {room - peak:.1f} GiB to spare"
    advice = "; to reduce it, add:" if plan.advice else ""
    lines = [f"does not fit on {card}: {plan.peak.name} needs {peak:.1f} GiB of {room:.1f}{advice}"]
    for step in plan.advice:
        flag = f"--{step.setting.replace('_', '-')}"
        lines.append(f"  {flag}{'' if step.value is True else f' {step.value}'}  -> {step.peak / GIB:.1f} GiB")
    if not plan.advice or plan.advice[-1].peak > plan.room:
        lines.append("  still too much: use a larger card, shorter or smaller clips, or a smaller model")
    return "\n".join(lines)


def automatic(plan: Plan) -> str:
    """What the settings that are `auto` became on this card."""
    return "auto on this card: " + ", ".join(f"{name} {value}" for name, value in plan.automatic.items())


def times(plan: Plan) -> str:
    """Seconds per step, and GPU-hours in total."""
    parts = ", ".join(f"{name} {hours:,.1f}" for name, hours in plan.hours.items())
    cards = f" on each of {plan.gpus} cards" if plan.gpus > 1 else ""
    uncounted = f"; not counted: the compute of {', '.join(plan.uncounted)}" if plan.uncounted else ""
    total = sum(plan.hours.values())
    return f"step: {plan.step:,.1f} s{cards}; total: {total:,.1f} GPU-hours ({parts}){uncounted}"


def assumption(plan: Plan) -> str:
    """What the seconds assume."""
    card, rates = plan.card.name, plan.rates
    if not rates.card:
        return f"seconds: at {rates.linear:.0%} of the published FLOP/s of the {card}, as --efficiency sets it"
    measured = f"seconds: at the fractions of the published rates that operations reached on the {rates.card}"
    return f"{measured}, {rates.date}" + (f"; the {card} has not been measured" if card != rates.card else "")


def as_json(plan: Plan) -> dict[str, Any]:
    """The whole plan as plain values, in bytes, FLOPs, seconds and hours."""
    return {
        "card": plan.card.name,
        "rates": {"measured_on": plan.rates.card, "date": plan.rates.date},
        "gpus": plan.gpus,
        "room": plan.room,
        "fits": plan.peak.peak <= plan.room,
        "peak": {"phase": plan.peak.name, "bytes": plan.peak.peak},
        "phases": {
            name: {"flops": phase.flops, "seconds": phase.seconds, "peak": phase.peak, "owners": dict(phase.owners)}
            for name, phase in plan.phases.items()
        },
        "seconds_of_a_step": sum(phase.seconds for name, phase in plan.phases.items() if name in STEP),
        "gpu_hours": plan.hours,
        "automatic": plan.automatic,
        "measured": {
            name: {"peak": phase.peak} | ({} if math.isnan(phase.seconds) else {"seconds": phase.seconds})
            for name, phase in plan.measured.items()
        },
        "advice": [{"setting": a.setting, "value": a.value, "peak": a.peak} for a in plan.advice],
        "uncounted": plan.uncounted,
    }
