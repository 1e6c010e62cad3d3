"""Which settings make a recipe fit: each is tried out, the cheapest first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from besttake.plan.meter import Phase, Throughput
from besttake.plan.steps import PARTS, measure, peak_phase

SWITCHES = (
    ("policy.gradient_checkpointing", "selective", {"train"}),  # all but attention is recomputed
    ("policy.gradient_checkpointing", "full", {"train"}),  # a third more FLOPs
    ("policy.micro_batch_size", 1, {"train"}),  # one more forward pass for each clip but the last
    ("rollout.batch", 1, {"sample", "decode"}),
    ("validation.rollout.batch", 1, {"validate"}),
    ("offload_idle", True, {"weights", "trained weights", "reference", "critics"}),  # two transfers per step
    ("optim.use_8bit_adam", True, {"optimizer"}),
    ("quantize", "int8", {"weights"}),
    ("tiling", True, {"encode", "sample", "decode", "validate", "evaluate"}),  # faint seams
    ("quantize", "nf4", {"weights"}),
    ("policy.reference_device", "cpu", {"reference"}),  # its blocks are transferred for every pass
    ("policy.train", "lora", {"trained weights", "reference", "optimizer", "gradients"}),
    ("policy.offload", True, {"weights"}),  # the same for the base's blocks
)
"""Settings that save memory, cheapest first, each with the phases or memory owners that it reduces."""

WORTH = 0.99
"""A setting is recommended if it reduces the peak to at most this fraction."""


@dataclass(frozen=True)
class Advice:
    """A setting to change, in addition to those before it in the list, and the resulting peak in bytes."""

    setting: str
    value: Any
    peak: float


def advise(config: Any, phases: dict[str, Phase], room: float, throughput: Throughput, gpus: int = 1) -> list[Advice]:
    """The settings to change until the recipe fits; empty if it fits as it is."""
    found: list[Advice] = []
    for setting, value, where in SWITCHES:
        peak = peak_phase(phases)
        if peak.peak <= room:
            break
        whose = {owner for owner, size in peak.owners.items() if size > (1 - WORTH) * peak.peak}
        if not where & {peak.name, *whose}:
            continue
        try:
            turned = with_setting(config, setting, value)
        except ValueError:  # an invalid combination, such as quantized weights that are trained
            continue
        if turned == config:
            continue
        parts = {_part(name) for name, phase in phases.items() if phase.peak > room}
        first = sorted(parts, key=lambda part: part != _part(peak.name))  # it decides alone against a setting
        useless = partial(_above, WORTH * peak.peak)
        after = phases | measure(turned, throughput, gpus, first, enough=useless)
        if not useless(after):
            config, phases = turned, after
            found.append(Advice(setting, value, peak_phase(after).peak))
    return found


def _above(most: float, phases: dict[str, Phase]) -> bool:
    return peak_phase(phases).peak > most


def _part(phase: str) -> str:
    """The part of a recipe that a phase belongs to."""
    return phase if phase in PARTS else "step"


def with_setting(config: Any, setting: str, value: Any) -> Any:
    """A config with one dotted setting changed."""
    name, _, rest = setting.partition(".")
    return replace(config, **{name: with_setting(getattr(config, name), rest, value) if rest else value})
