"""The measures in `summary.json`: labels, directions of improvement, and formatting of changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from besttake.evaluation.paired import LEVEL

SAME_FRACTION = 0.02
"""Smaller relative changes count as none."""

NEAR_FRACTION = 0.1
"""Relative difference to real clips that counts as equal."""

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"

Aim = Literal["lower", "higher", "real"]
Change = Literal["better", "worse", "same", "unknown"]
Values = Any
"""A number or an array."""


@dataclass(frozen=True)
class Measure:
    """Label and properties of a measure.

    Attributes:
        aim: direction of improvement; `real` = closer to real clips is better.
        share: whether it is a fraction in [0, 1], displayed as a percentage.
    """

    label: str
    aim: Aim = "real"
    share: bool = False
    unit: str = ""


KNOWN = {
    "flawed_share": Measure("clips with a visible flaw", "lower", share=True),
    "heldout_reward": Measure("held-out critic", "higher"),
    "frechet_distance": Measure("Fréchet distance to clean clips", "lower"),
    "dynamic_degree": Measure("dynamic degree"),
    "object_area": Measure("object area", unit=" px"),
    "caption_agreement": Measure("clips that show what the caption says", "higher", share=True),
    "colour_right": Measure("colour as in the caption", "higher", share=True),
    "shape_right": Measure("shape as in the caption", "higher", share=True),
    "size_right": Measure("size as in the caption", "higher", share=True),
    "motion_right": Measure("motion as in the caption", "higher", share=True),
    "background_right": Measure("background as in the caption", "higher", share=True),
}

MAIN = ("flawed_share", "heldout_reward", "frechet_distance")
"""The main measures of video quality."""

GUARDS = ("dynamic_degree", "object_area")
"""Measures that deteriorate under reward hacking."""

FLAW_PREFIX = "share/"
"""Prefix of the fraction of clips with one flaw."""

TRAINING_REWARD_PREFIX = "training_reward"
"""Prefix of the training critic's scores."""

CRITIC_PREFIX = "reward/"
"""Prefix of other critics' scores."""


def measure_of(name: str) -> Measure:
    """The measure of a name in `summary.json`; unknown ones are compared with real clips."""
    if name in KNOWN:
        return KNOWN[name]
    head, _, tail = name.rpartition("/")
    words = tail.replace("_", " ")
    if name.startswith(FLAW_PREFIX):
        return Measure(words, "lower", share=True)
    if name.startswith(TRAINING_REWARD_PREFIX):
        return Measure(words if head else "training critic", "higher")
    if head.startswith(CRITIC_PREFIX):
        critic = head.removeprefix(CRITIC_PREFIX)
        return Measure(words if words == critic.replace("-", " ") else f"{words}, by {critic}")
    return Measure(words, share=name.endswith("_share"))


def aim_of(name: str, real: float | None) -> Aim | None:
    """Direction of improvement; without real clips, critics' scores should rise, and other measures have none."""
    aim = measure_of(name).aim
    if aim == "real" and real is None:
        return "higher" if name.startswith(CRITIC_PREFIX) else None
    return aim


def gain_of(name: str, real: float | None, critic: str | None = None) -> Callable[[Values, Values], Values] | None:
    """The improvement of a measure as a function of its values before and after; None without a direction.

    Args:
        critic: the training critic, if any.
    """
    match aim_of(shown_name(name, critic), real):
        case "higher":
            return lambda before, after: after - before
        case "lower":
            return lambda before, after: before - after
        case "real":
            return lambda before, after: abs(before - (real or 0)) - abs(after - (real or 0))
    return None


def shown_name(name: str, critic: str | None) -> str:
    """A measure's name in reports: the training critic's scores are renamed to `training_reward/`."""
    return name.replace(f"reward/{critic}/", f"{TRAINING_REWARD_PREFIX}/", 1)


def change(
    name: str,
    before: float | None,
    after: float | None,
    real: float | None,
    clips: int | None = None,
    q_value: float | None = None,
) -> Change:
    """Whether `after` is significantly better or worse than `before`.

    Args:
        q_value: q-value of a paired test; insignificant changes are "same". A change must also exceed a minimum to be
            better. Without a test only this minimum applies, and for fractions of `clips` two standard errors of
            independent samples.
    """
    gain = gain_of(name, real)
    if before is None or after is None or gain is None:
        return "unknown"
    improvement: float = gain(before, after)
    if q_value is not None and (q_value > LEVEL or improvement < 0):
        return "same" if q_value > LEVEL else "worse"
    measure = measure_of(name)
    if measure.aim == "real" and real is not None:
        return _against_real(before, after, real)
    smallest = SAME_FRACTION * max(abs(before), abs(after))
    if measure.share and q_value is None:
        smallest = max(smallest, 2 * _standard_error(before, after, clips))
    return "same" if abs(improvement) <= smallest else "better" if improvement > 0 else "worse"


def _standard_error(before: float, after: float, clips: int | None) -> float:
    middle = min(max((before + after) / 2, 0.0), 1.0)
    return (2 * middle * (1 - middle) / clips) ** 0.5 if clips else 0.0


def _against_real(before: float, after: float, real: float) -> Change:
    old, new = abs(before - real), abs(after - real)
    if abs(new - old) <= SAME_FRACTION * abs(real) or max(old, new) <= NEAR_FRACTION * abs(real):
        return "same"
    return "better" if new < old else "worse"


def number(value: float, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, a true minus sign, and an exponent only if necessary."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    elif abs(value) >= 10 ** (digits - 1):
        text = f"{value:.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def shown(name: str, value: float | None) -> str:
    """Format a value with its unit; a dash if it is missing."""
    if value is None:
        return DASH
    measure = measure_of(name)
    return f"{value:.0%}".replace("-", MINUS) if measure.share else number(value) + measure.unit


def difference(name: str, before: float | None, after: float | None) -> str:
    """Format a change: percentage points of fractions, per cent of non-negative measures, otherwise the difference."""
    if before is None or after is None:
        return DASH
    delta = after - before
    if measure_of(name).share:
        points = round(100 * after) - round(100 * before)  # of the displayed values
        return _signed(str(abs(points)), points) + (" point" if abs(points) == 1 else " points")
    if before > 0 and after >= 0 and measure_of(name).aim != "higher":
        return _signed(f"{abs(delta) / before:.0%}", delta)
    return _signed(number(abs(delta)), delta)


def sentence_case(text: str) -> str:
    """A text with its first letter in upper case; the others stay."""
    return text[:1].upper() + text[1:]


def _signed(text: str, delta: float) -> str:
    return (
        "±0" + text[1:] if text.startswith("0") and not text.startswith("0.") else (MINUS if delta < 0 else "+") + text
    )
