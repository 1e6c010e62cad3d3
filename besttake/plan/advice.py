"""Which switch to turn where a recipe does not fit, each tried out: the cheapest first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from besttake.plan.meter import Pace, Phase
from besttake.plan.steps import PART_OF, fullest, measure

SWITCHES = (
    ("policy.gradient_checkpointing", True),  # a third more arithmetic
    ("policy.clips_at_once", 1),  # a forward pass more for each clip but the last
    ("rollout.batch", 1),
    ("monitor.rollout.batch", 1),
    ("by_turns", True),  # two moves a step
    ("optim.eight_bit", True),
    ("quantize", "int8"),
    ("tiling", True),  # faint seams
    ("quantize", "nf4"),
    ("policy.reference_on", "cpu"),  # its blocks come over for every pass
    ("policy.train", "lora"),
    ("policy.offload", True),  # so do the base's
)
"""Settings that save memory, in the order of what they cost."""

WORTH = 0.99
"""A switch is turned if it leaves no more than this share of the peak."""


@dataclass(frozen=True)
class Advice:
    """A setting to turn, those before it being turned already, and the peak in bytes that it leads to."""

    setting: str
    value: Any
    peak: float


def advise(config: Any, phases: dict[str, Phase], room: float, pace: Pace, gpus: int = 1) -> list[Advice]:
    """What to turn until the recipe fits; nothing if it does as it is."""
    found: list[Advice] = []
    for setting, value in SWITCHES:
        if fullest(phases).peak <= room:
            break
        try:
            turned = with_setting(config, setting, value)
        except ValueError:  # such as fewer bits for weights that are trained
            continue
        if turned == config:
            continue
        parts = {PART_OF[name] for name, phase in phases.items() if phase.peak > room}
        after = phases | measure(turned, pace, gpus, parts)
        if fullest(after).peak <= WORTH * fullest(phases).peak:
            config, phases = turned, after
            found.append(Advice(setting, value, fullest(after).peak))
    return found


def with_setting(config: Any, setting: str, value: Any) -> Any:
    """A config with one dotted setting changed."""
    name, _, rest = setting.partition(".")
    return replace(config, **{name: with_setting(getattr(config, name), rest, value) if rest else value})
