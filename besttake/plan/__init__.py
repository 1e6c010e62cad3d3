"""Cost of a recipe on a graphics card: memory, FLOPs, seconds and hours, without weights or the card.

`steps` runs the library's own code on a fake device (`fake_device`), with models made from their configurations
(`skeletons`), under a meter (`meter`); `advice` repeats that with other settings. No result is hard-coded.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from besttake.data.real import find_clips
from besttake.evaluation.held_out import listed_count
from besttake.plan.advice import Advice, advise, with_setting
from besttake.plan.automatic import resolve, settings_that_changed
from besttake.plan.cards import RESERVE, Card, find_card
from besttake.plan.critics import uncounted_critics
from besttake.plan.measured import measure_step
from besttake.plan.meter import Phase, Throughput
from besttake.plan.rates import Rates
from besttake.plan.steps import STEP, measure, peak_phase
from besttake.runtime.configuration import require
from besttake.runtime.devices import find_device

__all__ = ["Plan", "PlanConfig", "make_plan", "plan_on"]


@dataclass(frozen=True)
class PlanConfig:
    """Plan the cost of a recipe on a card. The recipe's own flags may follow."""

    card: str = "H100"
    """Card to plan for; `besttake plan` lists them."""
    gpus: int = 1
    """Number of cards; each step's samples and clips are split among them."""
    efficiency: float | None = None
    """Fraction of the card's published FLOP/s that all arithmetic reaches; by default as measured, by family."""
    reserve: float = RESERVE
    """Memory in GiB not available to tensors: the CUDA context and fragmentation."""
    measure: bool = False
    """Also run one real step on this machine, with random weights."""
    json: bool = False
    """Print the plan as JSON."""

    def __post_init__(self):
        require(self.gpus >= 1, "gpus", self.gpus, "1 or more")
        fraction = self.efficiency is None or 0 < self.efficiency <= 1
        require(fraction, "efficiency", self.efficiency, "a fraction in (0, 1], or leave it out")
        require(self.reserve >= 0, "reserve", self.reserve, "GiB, 0 or more")


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        rates: the fractions of the card's published rates that the seconds assume.
        room: bytes available to tensors on the card.
        phases: of the first card, by name: those of a training step, then encoding, validation and evaluation.
        hours: GPU-hours of all cards together, by activity.
        advice: settings that make it fit, if it does not.
        measured: phases of one real step on this machine, if `PlanConfig.measure` is set.
        automatic: what the settings that are `auto` became.
        uncounted: critics whose weights are counted, but not their compute.
    """

    card: Card
    rates: Rates
    gpus: int
    room: float
    phases: dict[str, Phase]
    hours: dict[str, float]
    advice: list[Advice] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    measured: dict[str, Phase] = field(default_factory=dict)
    automatic: dict[str, Any] = field(default_factory=dict)

    @property
    def peak(self) -> Phase:
        """The phase with the highest peak memory."""
        return peak_phase(self.phases)

    @property
    def step(self) -> float:
        """Seconds per training step."""
        return sum(phase.seconds for name, phase in self.phases.items() if name in STEP)


def make_plan(config: Any, settings: PlanConfig) -> Plan:
    """The plan of a recipe's config.

    Raises:
        ValueError: there is no such card, or no such model, or it cannot sample the size.
    """
    plan = plan_on(config, find_card(settings.card), settings)
    for name, value in plan.automatic.items():
        config = with_setting(config, name, value)
    throughput = Throughput(plan.card, settings.efficiency)
    advice = advise(config, plan.phases, plan.room, throughput, plan.gpus)
    device = torch.device(find_device(config.device))
    measured = measure_step(config, throughput, device) if settings.measure else {}
    return replace(plan, advice=advice, measured=measured)


def plan_on(config: Any, card: Card, settings: PlanConfig = PlanConfig()) -> Plan:
    """The plan of a config on a card, without advice or measurement; ValueError as of `make_plan`."""
    throughput, room = Throughput(card, settings.efficiency), (card.memory - settings.reserve) * 2**30
    planned, gpus = resolve(config, room, settings.gpus), settings.gpus
    phases = measure(planned, throughput, gpus)
    return Plan(
        *(card, throughput.rates, gpus, room, phases, hours(planned, phases, gpus)),
        uncounted=uncounted_critics(planned),
        automatic=settings_that_changed(config, planned),
    )


def hours(config: Any, phases: dict[str, Phase], gpus: int) -> dict[str, float]:
    """GPU-hours of all cards together, by activity."""
    algorithm = importlib.import_module(type(config).__module__)
    clips = _clips(config)
    per_step = next((getattr(config, name) for name in vars(config) if name.endswith("_per_step")), 1)
    share = algorithm.sampling_share(config, clips) if hasattr(algorithm, "sampling_share") else 1.0
    steps, validation, evaluation = config.steps, config.validation, config.evaluation_config
    each = {name: phases[name].seconds if name in phases else 0.0 for name in (*STEP, "encode", "validate", "evaluate")}
    prompts = listed_count(evaluation.prompts, evaluation.count)
    batches = prompts / min(prompts, evaluation.rollout.batch)
    if math.ceil(batches) % gpus:  # each card evaluates whole batches, and some idle in the end
        batches = math.ceil(batches / gpus) * gpus
    passes = math.ceil(steps / validation.every) + 1 if validation.every else 0
    seconds = {
        "encoding": each["encode"] * min(clips, steps * per_step),
        "sampling": (each["prompts"] + each["sample"] + each["decode"]) * steps * share * gpus,
        "scoring": each["score"] * steps * gpus,
        "training": each["train"] * steps * gpus,
        "validation": each["validate"] * passes * gpus,
        "evaluation": each["evaluate"] * 2 * batches,
    }
    return {name: time / 3600 for name, time in seconds.items() if time}


def _clips(config: Any) -> float:
    """Number of real clips of a recipe; 0 if it uses none, infinity if they are not available."""
    if not hasattr(config, "clips_per_step"):
        return 0.0
    try:
        return len(find_clips(config.data, skip_bad=True))
    except ValueError:
        return math.inf
