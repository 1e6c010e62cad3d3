"""A recipe within so many hours: fewer steps, then a smaller evaluation, smaller clips, fewer network evaluations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from besttake.models import VideoModel
from besttake.plan import Plan, hours
from besttake.plan.advice import with_setting

FEWEST_UPDATES = 100
"""Updates below which a replication is not worth its evaluation: little has changed."""

BESIDE_TRAINING = ("validation", "evaluation")
"""Activities of a plan that a run's time limit does not count."""


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen to keep the budget, and why."""

    setting: str
    value: Any
    reason: str


def within_budget(
    config: Any, budget: float, plan: Callable[[Any], Plan], model: VideoModel, fixed: Collection[str] = ()
) -> tuple[Any, Plan, list[Choice]]:
    """A config that by the plan takes at most `budget` hours on one card, its plan, and what was chosen.

    Steps are reduced first, to no fewer than `FEWEST_UPDATES` updates; if that is not enough, the `reductions` come one
    after the other. Last, a time limit stops the training where the card is slower than planned.

    Args:
        plan: of a config.
        model: of the config, with or without weights.
        fixed: dotted names of the settings to leave alone.

    Raises:
        ValueError: all of that is not enough.
    """
    planned, choices, fewest = plan(config), list[Choice](), fewest_steps(config, "steps" in fixed)
    remaining = reductions(config, model)
    while not (steps := most_steps(config, planned, budget, fewest)):
        values = next(remaining, None)
        if values is None:
            least = total(replace(config, steps=fewest), planned)
            raise ValueError(
                f"budget is {budget:g} hours, but {fewest} steps take {least:.1f} hours on {planned.card.name}, with "
                f"the smallest clips and evaluation that are tried; give {least + 0.1:.1f} hours or more"
            )
        if not values.keys().isdisjoint(fixed):
            continue
        smaller = config
        for name, value in values.items():
            smaller = with_setting(smaller, name, value)
        try:
            config, planned = smaller, plan(smaller)
        except RuntimeError:  # the network takes no other size, as CogVideoX's with rotary embeddings
            continue
        choices += [Choice(*item, f"{fewest} steps did not fit into {budget:g} hours") for item in values.items()]
    if steps < config.steps:
        reason = f"{config.steps} steps take {total(config, planned):.1f} hours, more than {budget:g}"
        choices.append(Choice("steps", steps, reason))
        config = replace(config, steps=steps)
    needed = hours(config, planned.phases, 1)
    if "minutes" not in fixed:
        minutes = round(60 * (budget - sum(needed.get(name, 0.0) for name in BESIDE_TRAINING)), 1)
        choices.append(Choice("minutes", minutes, "stops the training in time if the card is slower than planned"))
        config = replace(config, minutes=minutes)
    return config, replace(planned, hours=needed), choices


def reductions(config: Any, model: VideoModel) -> Iterator[dict[str, Any]]:
    """Settings that make a run cheaper, in the order in which they are tried, with dotted names.

    Half of the evaluation's prompts; about 0.6, then 0.4 of the frames (49 and 33 of 81); two thirds of height and
    width; and, where a rollout skips network evaluations already, 8 of them.
    """
    rollout, count = config.rollout_config, config.evaluation.count
    frames, height, width = rollout.size(model)
    if count >= 32:
        yield {"evaluation.count": count // 2}
    for share in (0.61, 0.41):
        if fewer := next((n for n in range(int(share * frames), 1, -1) if _samples(model, n, height, width)), None):
            yield {"rollout.frames": fewer}
    low, narrow = (side * 2 // 3 // 32 * 32 for side in (height, width))
    if low and narrow and _samples(model, frames, low, narrow):
        yield {"rollout.height": low, "rollout.width": narrow}
    if (rollout.evaluations or 0) > 8:
        yield {"rollout.evaluations": 8}


def most_steps(config: Any, plan: Plan, budget: float, fewest: int) -> int:
    """The most steps, from `fewest` to the config's, that take at most `budget` hours; 0 if `fewest` take longer."""
    if total(replace(config, steps=fewest), plan) > budget:
        return 0
    low, high = fewest, config.steps
    while low < high:
        middle = (low + high + 1) // 2
        fits = total(replace(config, steps=middle), plan) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def fewest_steps(config: Any, fixed: bool = False) -> int:
    """The fewest steps that are worth it; all of them if they are fixed."""
    return config.steps if fixed else min(config.steps, FEWEST_UPDATES * config.optim.gradient_accumulation_steps)


def total(config: Any, plan: Plan) -> float:
    """Hours of a config on one card, by the phases of a plan of the same sizes."""
    return sum(hours(config, plan.phases, 1).values())


def _samples(model: VideoModel, frames: int, height: int, width: int) -> bool:
    try:
        model.latent_shape(frames, height, width)
    except ValueError:
        return False
    return True
