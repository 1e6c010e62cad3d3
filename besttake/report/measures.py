"""What the numbers of `summary.json` mean: their names in words, where they should go, and how a change reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from besttake.evaluation.paired import LEVEL

SAME = 0.02
"""Changes of a smaller share of the value are none."""

NEAR = 0.1
"""Within so much of the real clips' value counts as theirs."""

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"

Aim = Literal["lower", "higher", "real"]
Change = Literal["better", "worse", "same", "unknown"]
Values = Any
"""A number, or an array of numbers."""


@dataclass(frozen=True)
class Measure:
    """A measure in words.

    Attributes:
        aim: `real` = the nearer to real clips, the better.
        share: a number in [0, 1] that reads as a percentage.
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
"""What says whether the videos got better."""

GUARDS = ("dynamic_degree", "object_area")
"""What a policy that games its critic lets go."""

FLAWS = ("share/",)
"""Prefix under which the share of clips with one flaw is written."""

TRAINED = "training_reward"
"""Prefix of what the critic says that was trained on."""

ASKED = "reward/"
"""Prefix of what another critic says."""


def measure_of(name: str) -> Measure:
    """What a name of `summary.json` means; for one that nobody knows, real clips are the measure."""
    if name in KNOWN:
        return KNOWN[name]
    head, _, tail = name.rpartition("/")
    words = tail.replace("_", " ")
    if name.startswith(FLAWS):
        return Measure(words, "lower", share=True)
    if name.startswith(TRAINED):
        return Measure(words if head else "training critic", "higher")
    if head.startswith(ASKED):
        critic = head.removeprefix(ASKED)
        return Measure(words if words == critic.replace("-", " ") else f"{words}, by {critic}")
    return Measure(words, share=name.endswith("_share"))


def aim_of(name: str, real: float | None) -> Aim | None:
    """Where a number should go; without real clips a critic's is to rise, and nothing is known of other measures."""
    aim = measure_of(name).aim
    if aim == "real" and real is None:
        return "higher" if name.startswith(ASKED) else None
    return aim


def gain_of(name: str, real: float | None, critic: str | None = None) -> Callable[[Values, Values], Values] | None:
    """How much better a measure is after than before, as a function of both; None if nothing says which way is better.

    Args:
        critic: the one that was trained on, if it was.
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
    """A measure's name in reports: what the critic says that was trained on goes under `training_reward/`."""
    return name.replace(f"reward/{critic}/", f"{TRAINED}/", 1)


def change(
    name: str,
    before: float | None,
    after: float | None,
    real: float | None,
    clips: int | None = None,
    q_value: float | None = None,
) -> Change:
    """Whether `after` is better than `before`, by more than chance.

    Args:
        q_value: of a test of the clips in pairs: what chance might do is the same. To be better, a change must be
            more than a trifle too. Summaries without a test go by the latter alone, and of a share of `clips` by two
            standard errors, as if they were of other prompts.
    """
    gain = gain_of(name, real)
    if before is None or after is None or gain is None:
        return "unknown"
    better: float = gain(before, after)
    if q_value is not None and (q_value > LEVEL or better < 0):
        return "same" if q_value > LEVEL else "worse"
    measure = measure_of(name)
    if measure.aim == "real" and real is not None:
        return _against_real(before, after, real)
    least = SAME * max(abs(before), abs(after))
    if measure.share and q_value is None:
        least = max(least, 2 * _standard_error(before, after, clips))
    return "same" if abs(better) <= least else "better" if better > 0 else "worse"


def _standard_error(before: float, after: float, clips: int | None) -> float:
    middle = min(max((before + after) / 2, 0.0), 1.0)
    return (2 * middle * (1 - middle) / clips) ** 0.5 if clips else 0.0


def _against_real(before: float, after: float, real: float) -> Change:
    was, now = abs(before - real), abs(after - real)
    if abs(now - was) <= SAME * abs(real) or max(was, now) <= NEAR * abs(real):
        return "same"
    return "better" if now < was else "worse"


def number(value: float, digits: int = 3) -> str:
    """A number for people: so many significant digits, a true minus, no exponent while it can be helped."""
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
    """A value with its unit; a dash where there is none."""
    if value is None:
        return DASH
    measure = measure_of(name)
    return f"{value:.0%}".replace("-", MINUS) if measure.share else number(value) + measure.unit


def difference(name: str, before: float | None, after: float | None) -> str:
    """How much it changed: points of a share, per cent of what counts from 0, plainly what may be negative."""
    if before is None or after is None:
        return DASH
    delta = after - before
    if measure_of(name).share:
        points = round(100 * after) - round(100 * before)  # of the figures that stand beside it
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
