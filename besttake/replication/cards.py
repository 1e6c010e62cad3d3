"""The card at hand, a recipe's plan on it, and the settings with which training and evaluation fit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from besttake.plan import Plan, PlanConfig
from besttake.plan.advice import Advice, advise, with_setting
from besttake.plan.cards import CARDS, Card, find_card
from besttake.plan.meter import Throughput
from besttake.plan.steps import measure

GIB = 2**30

EVALUATION = (("evaluation.rollout.batch", 1), ("tiling", True), ("offload_idle", True))
"""Settings that save memory in the evaluation, which `besttake plan` does not count; the cheapest first."""


def card_at_hand(device: str, name: str | None = None) -> Card | None:
    """The card to plan for, with the memory that it has on this machine; None for a CPU, unless it is named.

    Args:
        device: as `find_device` gives it.
        name: the card of `besttake plan` to take the speed of.

    Raises:
        ValueError: there is no such card, or none is named and that of this machine is unknown.
    """
    if not device.startswith("cuda"):
        return find_card(name) if name else None
    card = find_card(name) if name else known_card(torch.cuda.get_device_name(device))
    return replace(card, memory=torch.cuda.get_device_properties(device).total_memory / GIB)


def known_card(device_name: str) -> Card:
    """The card that a driver's name ("NVIDIA A100-SXM4-80GB") means; ValueError if it is not among those of a plan."""
    words = set(_words(device_name))
    found = [card for card in CARDS.values() if words.issuperset(_words(card.name))]
    if not found:
        raise ValueError(
            f"{device_name} is not among the cards that can be planned for; give --card with one of about its speed: "
            f"{', '.join(CARDS)}"
        )
    return max(found, key=lambda card: len(_words(card.name)))


def check_fit(config: Any, plan: Plan) -> None:
    """ValueError with the settings to change unless the training and the evaluation fit on the card."""
    fullest = max(plan.phases.values(), key=lambda phase: phase.peak)
    if fullest.peak <= plan.room:
        return
    found = advice(config, plan)
    needs = f"{fullest.name} needs {fullest.peak / GIB:.1f} GiB of {plan.room / GIB:.1f}"
    if not found or found[-1].peak > plan.room:
        raise ValueError(
            f"it does not fit on {plan.card.name}: {needs}, whatever is set; use a larger card, or smaller clips "
            "(--rollout.frames, --rollout.height, --rollout.width)"
        )
    flags = [f"--{a.setting.replace('_', '-')}{'' if a.value is True else f' {a.value}'}" for a in found]
    raise ValueError(
        f"it does not fit on {plan.card.name}: {needs}; add {' '.join(flags)} (then {found[-1].peak / GIB:.1f} GiB)"
    )


def advice(config: Any, plan: Plan) -> list[Advice]:
    """Settings to change until training and evaluation fit, each with the highest peak that is left in bytes."""
    throughput = Throughput(plan.card, PlanConfig().efficiency)
    found = advise(config, plan.phases, plan.room, throughput)
    for step in found:
        config = with_setting(config, step.setting, step.value)
    trained = found[-1].peak if found else plan.peak.peak
    evaluated = (measure(config, throughput, parts=["evaluate"]) if found else plan.phases)["evaluate"].peak
    for setting, value in EVALUATION:
        if evaluated <= plan.room or (changed := with_setting(config, setting, value)) == config:
            continue
        config, evaluated = changed, measure(changed, throughput, parts=["evaluate"])["evaluate"].peak
        found.append(Advice(setting, value, max(trained, evaluated)))
    return found


def _words(name: str) -> list[str]:
    return re.split(r"[\s-]+", name.lower())
