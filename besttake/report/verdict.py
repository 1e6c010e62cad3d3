"""One sentence on whether the videos got better, said from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from besttake.report.critics import trained_reward
from besttake.report.folder import RunFolder
from besttake.report.measures import (
    ASKED,
    GUARDS,
    MAIN,
    NEAR,
    TRAINED,
    Change,
    change,
    measure_of,
    number,
    sentence_case,
    shown,
)

Kind = Literal["better", "worse", "mixed", "same", "hacked", "unknown"]

SEEN = ("flawed_share", "heldout_reward")
"""Of these one must be better before a run is called so: a distance between sets of clips alone shows in no clip."""

FREEZING = 0.25
"""A run that loses more of its motion than this share has learned to stand still, whatever else got better."""

MOTION = ("dynamic_degree", "reward/dynamic-degree/dynamic degree")
"""What tells of motion: as it was measured, or else as a critic says."""

SUBJECTS = {
    "flawed_share": "visibly flawed clips",
    "heldout_reward": "the held-out critic",
    "frechet_distance": "the Fréchet distance to clean clips",
    "dynamic_degree": "the dynamic degree",
    "object_area": "the objects' area",
}


@dataclass(frozen=True)
class Verdict:
    """A kind, its word, and the sentence that says why."""

    kind: Kind
    word: str
    sentence: str


def verdict(run: RunFolder) -> Verdict:
    """What can be said of a run; never more than its summary shows, and first of all every measure that got worse."""
    if run.summary is None:
        return Verdict("unknown", "Not evaluated", _unfinished(run))
    found = {name: changed(run, name) for name in measures(run)}
    better, worse, same = (_told_all(run, found, kind) for kind in ("better", "worse", "same"))
    reward = trained_reward(run)
    if reward and _rose(*reward) and (found.get("heldout_reward") == "worse" or motion_lost(run, FREEZING)):
        return Verdict("hacked", "Reward hacking", _hacked(run, reward, worse, better))
    if better and worse:
        return Verdict("mixed", "Mixed", f"Worse: {_list(worse)}. Better: {_list(better)}.")
    if worse:
        rest = f"; {_list(same)}" if same else ""
        return Verdict("worse", "Worse", f"The videos got worse: {_list(worse)}{rest}.")
    if not any(name in found for name in MAIN):
        return _by_critics(run, better)
    if better and not any(found.get(name) == "better" for name in SEEN):
        return Verdict(
            "same", "Hardly a change", f"{sentence_case(_list(better))}, but {_list(same) or 'nothing else moved'}."
        )
    if better:
        clauses = [f"The videos got better: {_list(better)}", *([_list(same)] if same else []), *_kept(run)]
        return Verdict("better", "Better", "; ".join(clauses) + ".")
    return Verdict("same", "No change", f"The numbers show no clear change: {_list(same)}.")


def changed(run: RunFolder, name: str) -> Change:
    """Whether a measure got better or worse; motion that is lost is worse."""
    kind = change(name, *values(run, name), clips=clip_count(run), q_value=run.q_values.get(name))
    return "worse" if name == "dynamic_degree" and not run.q_values and motion_lost(run) else kind


def measures(run: RunFolder) -> list[str]:
    """What was measured before and after training: first what says whether the videos got better, then all else.

    What critics say is left out where no test tells its changes from chance.
    """
    before, after = ((run.summary or {}).get(column, {}) for column in ("before", "after"))
    there = [name for name in before if name in after and (run.q_values or not name.startswith((ASKED, TRAINED)))]
    first = [name for name in (*MAIN, *GUARDS) if name in there]
    return [*first, *(name for name in there if name not in first)]


def _told_all(run: RunFolder, found: dict[str, Change], kind: Change) -> list[str]:
    """Of what got worse all; of what got better or stayed, what says whether the videos did, or else all that rose."""
    names = [name for name, change in found.items() if change == kind]
    main = [name for name in names if name in MAIN]
    if kind == "worse":
        return [_told(run, name) for name in names]
    return [_told(run, name) + _chance(run, name) for name in (main or (names if kind == "better" else []))]


def _by_critics(run: RunFolder, better: Sequence[str]) -> Verdict:
    """Where nothing was measured of the videos, and nothing got worse."""
    if not any(name.startswith((ASKED, TRAINED)) for name in (run.summary or {})["after"]):
        sentence = "The summary has no number both before and after training to compare."
        return Verdict("unknown", "Not comparable", sentence)
    rose = f"{sentence_case(_list(better))}" if better else "None of their scores changed clearly"
    return Verdict("unknown", "Critics only", f"Nothing was measured but what critics say. {rose}.")


def values(run: RunFolder, name: str) -> tuple[float | None, float | None, float | None]:
    """Before, after, and of real clips; None where it was not measured."""
    summary = run.summary or {}
    before, after, real = (summary.get(column, {}).get(name) for column in ("before", "after", "real"))
    return before, after, real


def clip_count(run: RunFolder) -> int | None:
    """How many clips the summary's shares are of."""
    clips = run.about.get("clips")
    return clips if isinstance(clips, int) and clips > 0 else None


def motion_lost(run: RunFolder, share: float = NEAR) -> bool:
    """Whether the dynamic degree fell by more than a share of it, and not merely down to that of real clips."""
    before, after, real = values(run, MOTION[0])
    if before is None:
        before, after, real = values(run, MOTION[1])
    if before is None or after is None:
        return False
    return after < (1 - share) * before and (real is None or after < (1 - share) * real)


def _rose(before: float, after: float) -> bool:
    return change(TRAINED, before, after, None) == "better"


def _told(run: RunFolder, name: str) -> str:
    """ "the held-out critic rose from -1.3 to -.2"; with real clips' value where they are the measure."""
    before, after, real = values(run, name)
    subject, kind = SUBJECTS.get(name, measure_of(name).label.replace(", by ", " by ")), changed(run, name)
    was, now = shown(name, before), shown(name, after)
    aside = f" (real clips: {shown(name, real)})" if measure_of(name).aim == "real" and real is not None else ""
    verb = "rose" if (after or 0) > (before or 0) else "fell"
    if was == now:
        return f"{subject} {'stayed at' if kind == 'same' else f'{verb} slightly, at'} {now}{aside}"
    if kind == "same" and not measure_of(name).share:
        return f"{subject} hardly moved, from {was} to {now}{aside}"
    return f"{subject} {verb} from {was} to {now}{aside}"


def _chance(run: RunFolder, name: str) -> str:
    before, after, _ = values(run, name)
    clips = clip_count(run) if measure_of(name).share and shown(name, before) != shown(name, after) else None
    return f", which may be chance with {clips} clips" if clips and changed(run, name) == "same" else ""


def _kept(run: RunFolder) -> list[str]:
    """How near the dynamic degree and the objects' area are to real clips'."""
    near: dict[bool, list[str]] = {True: [], False: []}
    for name in GUARDS:
        _, after, real = values(run, name)
        if after is not None and real is not None:
            near[abs(after - real) <= NEAR * abs(real)].append(measure_of(name).label)
    said = {True: "within a tenth of real clips'", False: "still more than a tenth off real clips'"}
    return [f"{_list(near[k])} {'is' if len(near[k]) == 1 else 'are'} {said[k]}" for k in (True, False) if near[k]]


def _hacked(run: RunFolder, reward: tuple[float, float], worse: Sequence[str], better: Sequence[str]) -> str:
    before, after = map(number, reward)
    named = worse or [_told(run, name) for name in MOTION if None not in values(run, name)[:2]][:1]
    rest = f", though {_list(better)}" if better else ""
    return (
        f"Worse: {_list(named)}{rest}. The critic it was trained on rose from {before} to {after}: "
        "it learned to please its critic rather than to make better videos."
    )


def _unfinished(run: RunFolder) -> str:
    steps = run.config.get("steps")
    of = f" of {steps}" if isinstance(steps, int) else ""
    far = f"it has logged {run.steps_done}{of} steps" if run.rows else "no step has been logged yet"
    return (
        f"This run is unfinished or was not evaluated: there is no summary.json, so whether the videos got better "
        f"is not known; {far}."
    )


def _list(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
