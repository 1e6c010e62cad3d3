"""A plan as people read it, and as programs do."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from besttake.plan import Plan
from besttake.plan.meter import Phase
from besttake.plan.steps import STEP

GIB = 2**30

BESIDE = {"encode": "a clip", "validate": "a pass", "evaluate": "a batch"}
"""What the phases beside the step are of."""


def table(plan: Plan) -> Table:
    """The phases, a row each."""
    shown = Table("phase", "of", "TFLOP", "seconds", "peak GiB", "whose")
    for column in shown.columns[2:5]:
        column.justify = "right"
    for name, phase in plan.phases.items():
        numbers = f"{phase.flops / 1e12:,.1f}", f"{phase.seconds:,.2f}", f"{phase.peak / GIB:.1f}"
        shown.add_row(name, BESIDE.get(name, "a step"), *numbers, whose(phase))
    return shown


def measured(plan: Plan) -> Table:
    """The phases of one real step on this machine, beside those planned."""
    shown = Table("measured here", "seconds", "peak GiB", "planned GiB", "measured / planned")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, phase in plan.measured.items():
        if planned := plan.phases.get(name):
            seconds = "" if math.isnan(phase.seconds) else f"{phase.seconds:,.2f}"
            numbers = seconds, f"{phase.peak / GIB:.2f}", f"{planned.peak / GIB:.2f}"
            shown.add_row(name, *numbers, f"{phase.peak / planned.peak:.2f}")
    return shown


def whose(phase: Phase) -> str:
    """Owners of the memory at the fullest moment, the largest first; what is less than a hundredth is left out."""
    owners = [(owner, size) for owner, size in phase.owners.most_common() if size > phase.peak / 100]
    return ", ".join(f"{owner} {size / GIB:.1f}" for owner, size in owners)


def verdict(plan: Plan) -> str:
    """Whether it fits, and what to do if it does not: a sentence, and a line for each switch."""
    peak, room, card = plan.peak.peak / GIB, plan.room / GIB, plan.card.name
    if peak <= room:
        return f"fits on {card}: {peak:.1f} GiB of {room:.1f}, {room - peak:.1f} to spare ({plan.peak.name} takes most)"
    lines = [f"does not fit on {card}: {plan.peak.name} takes {peak:.1f} GiB of {room:.1f}"]
    for advice in plan.advice:
        flag = f"--{advice.setting.replace('_', '-')}"
        lines.append(f"  {flag}{'' if advice.value is True else f' {advice.value}'}  -> {advice.peak / GIB:.1f} GiB")
    if not plan.advice or plan.advice[-1].peak > plan.room:
        lines.append("  and that is not enough: take a larger card, shorter or smaller clips, or a smaller model")
    return "\n".join(lines)


def times(plan: Plan) -> str:
    """Seconds of a step, and hours of all."""
    parts = ", ".join(f"{name} {hours:,.1f}" for name, hours in plan.hours.items())
    cards = f" on each of {plan.gpus} cards" if plan.gpus > 1 else ""
    uncounted = f"; the work of {', '.join(plan.uncounted)} is not counted" if plan.uncounted else ""
    return f"a step: {plan.step:,.1f} s{cards}; {sum(plan.hours.values()):,.1f} GPU-hours in all ({parts}){uncounted}"


def as_json(plan: Plan) -> dict[str, Any]:
    """All of a plan, in bytes, FLOP, seconds and hours."""
    return {
        "card": plan.card.name,
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
        "measured": {
            name: {"peak": phase.peak} | ({} if math.isnan(phase.seconds) else {"seconds": phase.seconds})
            for name, phase in plan.measured.items()
        },
        "advice": [{"setting": a.setting, "value": a.value, "peak": a.peak} for a in plan.advice],
        "uncounted": plan.uncounted,
    }
