"""The verdict of a run: whether the videos improved, in one sentence based on the summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from besttake.report.critics import trained_reward
from besttake.report.folder import RunFolder
from besttake.report.measures import (
    CRITIC_PREFIX,
    GUARDS,
    MAIN,
    NEAR_FRACTION,
    TRAINING_REWARD_PREFIX,
    Change,
    change,
    measure_of,
    number,
    sentence_case,
    shown,
)

Kind = Literal["better", "worse", "mixed", "same", "hacked", "unknown"]

CLIP_MEASURES = ("flawed_share", "heldout_reward")
"""A run is better only if one of these is: the distance of distributions alone is not visible in single clips."""

FREEZE_FRACTION = 0.25
"""A run that loses more than this fraction of its motion counts as reward hacking, whatever else improved."""

MOTION = ("dynamic_degree", "reward/dynamic-degree/dynamic degree")
"""Measures of motion: the exact one, or else a critic's."""

SUBJECTS = {
    "flawed_share": "visibly flawed clips",
    "heldout_reward": "the held-out critic",
    "frechet_distance": "the Fréchet distance to clean clips",
    "dynamic_degree": "the dynamic degree",
    "object_area": "the objects' area",
}


@dataclass(frozen=True)
class Verdict:
    """The kind of verdict, its label, and the sentence that explains it."""

    kind: Kind
    label: str
    sentence: str


def verdict(run: RunFolder) -> Verdict:
    """The verdict of a run from its summary; every measure that got worse is named first."""
    if run.summary is None:
        return Verdict("unknown", "Not evaluated", _unfinished(run))
    changes = {name: change_of(run, name) for name in measures(run)}
    better, worse, same = (_describe_all(run, changes, kind) for kind in ("better", "worse", "same"))
    reward = trained_reward(run)
    if reward and _rose(*reward) and (changes.get("heldout_reward") == "worse" or motion_lost(run, FREEZE_FRACTION)):
        return Verdict("hacked", "Reward hacking", _hacked(run, reward, worse, better))
    if better and worse:
        return Verdict("mixed", "Mixed", f"Worse: {_list(worse)}. Better: {_list(better)}.")
    if worse:
        rest = f"; {_list(same)}" if same else ""
        return Verdict("worse", "Worse", f"The videos got worse: {_list(worse)}{rest}.")
    if not any(name in changes for name in MAIN):
        return _by_critics(run, better)
    if better and not any(changes.get(name) == "better" for name in CLIP_MEASURES):
        return Verdict(
            "same", "Hardly a change", f"{sentence_case(_list(better))}, but {_list(same) or 'nothing else moved'}."
        )
    if better:
        clauses = [f"The videos got better: {_list(better)}", *([_list(same)] if same else []), *_near_real(run)]
        return Verdict("better", "Better", "; ".join(clauses) + ".")
    return Verdict("same", "No change", f"The numbers show no clear change: {_list(same)}.")


def change_of(run: RunFolder, name: str) -> Change:
    """Whether a measure got better or worse; lost motion counts as worse."""
    kind = change(name, *values(run, name), clips=clip_count(run), q_value=run.q_values.get(name))
    return "worse" if name == "dynamic_degree" and not run.q_values and motion_lost(run) else kind


def measures(run: RunFolder) -> list[str]:
    """Names of the measures with values before and after training, main measures first.

    Critics' scores are left out if their changes were not tested for significance.
    """
    before, after = ((run.summary or {}).get(column, {}) for column in ("before", "after"))
    present = [
        name
        for name in before
        if name in after and (run.q_values or not name.startswith((CRITIC_PREFIX, TRAINING_REWARD_PREFIX)))
    ]
    first = [name for name in (*MAIN, *GUARDS) if name in present]
    return [*first, *(name for name in present if name not in first)]


def _describe_all(run: RunFolder, changes: dict[str, Change], kind: Change) -> list[str]:
    """Descriptions of all measures that got worse; of others, the main measures, or else all that got better."""
    names = [name for name, change in changes.items() if change == kind]
    main = [name for name in names if name in MAIN]
    if kind == "worse":
        return [_describe(run, name) for name in names]
    return [_describe(run, name) + _chance(run, name) for name in (main or (names if kind == "better" else []))]


def _by_critics(run: RunFolder, better: Sequence[str]) -> Verdict:
    """The verdict if there are only critics' scores, and none got worse."""
    if not any(name.startswith((CRITIC_PREFIX, TRAINING_REWARD_PREFIX)) for name in (run.summary or {})["after"]):
        sentence = "The summary has no number both before and after training to compare."
        return Verdict("unknown", "Not comparable", sentence)
    rose = f"{sentence_case(_list(better))}" if better else "None of their scores changed clearly"
    return Verdict("unknown", "Critics only", f"Only critics' scores were measured. {rose}.")


def values(run: RunFolder, name: str) -> tuple[float | None, float | None, float | None]:
    """A measure before, after, and of real clips; None if it was not measured."""
    summary = run.summary or {}
    before, after, real = (summary.get(column, {}).get(name) for column in ("before", "after", "real"))
    return before, after, real


def clip_count(run: RunFolder) -> int | None:
    """Number of clips behind the summary's fractions."""
    clips = run.about.get("clips")
    return clips if isinstance(clips, int) and clips > 0 else None


def motion_lost(run: RunFolder, share: float = NEAR_FRACTION) -> bool:
    """Whether the dynamic degree fell by more than a fraction `share`, and below that of real clips."""
    before, after, real = values(run, MOTION[0])
    if before is None:
        before, after, real = values(run, MOTION[1])
    if before is None or after is None:
        return False
    return after < (1 - share) * before and (real is None or after < (1 - share) * real)


def _rose(before: float, after: float) -> bool:
    return change(TRAINING_REWARD_PREFIX, before, after, None) == "better"


def _describe(run: RunFolder, name: str) -> str:
    """ "the held-out critic rose from -1.3 to -.2"; with real clips' value where they are the measure."""
    before, after, real = values(run, name)
    subject, kind = SUBJECTS.get(name, measure_of(name).label.replace(", by ", " by ")), change_of(run, name)
    old, new = shown(name, before), shown(name, after)
    aside = f" (real clips: {shown(name, real)})" if measure_of(name).aim == "real" and real is not None else ""
    verb = "rose" if (after or 0) > (before or 0) else "fell"
    if old == new:
        return f"{subject} {'stayed at' if kind == 'same' else f'{verb} slightly, at'} {new}{aside}"
    if kind == "same" and not measure_of(name).share:
        return f"{subject} hardly moved, from {old} to {new}{aside}"
    return f"{subject} {verb} from {old} to {new}{aside}"


def _chance(run: RunFolder, name: str) -> str:
    before, after, _ = values(run, name)
    clips = clip_count(run) if measure_of(name).share and shown(name, before) != shown(name, after) else None
    return f", which may be chance with {clips} clips" if clips and change_of(run, name) == "same" else ""


def _near_real(run: RunFolder) -> list[str]:
    """Sentences on whether dynamic degree and object area are close to those of real clips."""
    near: dict[bool, list[str]] = {True: [], False: []}
    for name in GUARDS:
        _, after, real = values(run, name)
        if after is not None and real is not None:
            near[abs(after - real) <= NEAR_FRACTION * abs(real)].append(measure_of(name).label)
    words = {True: "within a tenth of real clips'", False: "still more than a tenth off real clips'"}
    return [f"{_list(near[k])} {'is' if len(near[k]) == 1 else 'are'} {words[k]}" for k in (True, False) if near[k]]


def _hacked(run: RunFolder, reward: tuple[float, float], worse: Sequence[str], better: Sequence[str]) -> str:
    before, after = map(number, reward)
    named = worse or [_describe(run, name) for name in MOTION if None not in values(run, name)[:2]][:1]
    rest = f", though {_list(better)}" if better else ""
    return (
        f"Worse: {_list(named)}{rest}. The critic it was trained on rose from {before} to {after}: "
        "the policy learned to please its critic rather than to make better videos."
    )


def _unfinished(run: RunFolder) -> str:
    steps = run.config.get("steps")
    of = f" of {steps}" if isinstance(steps, int) else ""
    far = f"it has logged {run.steps_done}{of} steps" if run.rows else "no step has been logged yet"
    return (
        f"This run is unfinished or was not evaluated: there is no summary.json, so it is unknown whether the videos "
        f"got better; {far}."
    )


def _list(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
