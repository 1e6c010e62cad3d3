"""One sentence on whether the videos got better, said from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from besttake.report.critics import trained_reward
from besttake.report.folder import RunFolder
from besttake.report.measures import ASKED, GUARDS, MAIN, NEAR, TRAINED, change, measure_of, number, shown

Kind = Literal["better", "worse", "mixed", "same", "hacked", "unknown"]

SEEN = ("flawed_share", "heldout_reward")
"""Of these one must be better before a run is called so: a distance between sets of clips alone shows in no clip."""

FREEZING = 0.25
"""A run that loses more of its motion than this share has learned to stand still, whatever else got better."""

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
    """What can be said of a run; never more than its summary shows."""
    if run.summary is None:
        return Verdict("unknown", "Not evaluated", _unfinished(run))
    found = {name: change(name, *values(run, name), clips=clip_count(run)) for name in (*MAIN, *GUARDS)}
    lost = motion_lost(run)
    if lost:
        found["dynamic_degree"] = "worse"
    better = [_told(run, name) for name in MAIN if found[name] == "better"]
    worse = [_told(run, name) for name in found if found[name] == "worse"]
    same = [_told(run, name) + _chance(run, name) for name in MAIN if found[name] == "same"]
    reward = trained_reward(run)
    if reward and _rose(*reward) and (found["heldout_reward"] == "worse" or motion_lost(run, FREEZING)):
        return Verdict("hacked", "Reward hacking", _hacked(reward, worse, better))
    if better and worse:
        return Verdict("mixed", "Mixed", f"{_capital(_list(better))}, but {_list(worse)}.")
    if better and not any(found[name] == "better" for name in SEEN):
        return Verdict(
            "same", "Hardly a change", f"{_capital(_list(better))}, but {_list(same) or 'nothing else moved'}."
        )
    if better:
        clauses = [f"The videos got better: {_list(better)}", *([_list(same)] if same else []), *_kept(run)]
        return Verdict("better", "Better", "; ".join(clauses) + ".")
    if worse:
        rest = f"; {_list(same)}" if same else ""
        return Verdict("worse", "Worse", f"The videos got worse: {_list(worse)}{rest}.")
    if same:
        return Verdict("same", "No change", f"The numbers show no clear change: {_list(same)}.")
    if any(name.startswith((ASKED, TRAINED)) for name in run.summary["after"]):
        return Verdict("unknown", "Critics only", "Nothing was measured but what critics say: see the table.")
    return Verdict("unknown", "Not comparable", "The summary has no number both before and after training to compare.")


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
    before, after, real = values(run, "dynamic_degree")
    if before is None or after is None:
        return False
    return after < (1 - share) * before and (real is None or after < (1 - share) * real)


def _rose(before: float, after: float) -> bool:
    return change(TRAINED, before, after, None) == "better"


def _told(run: RunFolder, name: str) -> str:
    """ "the held-out critic rose from -1.3 to -.2"; with real clips' value where they are the measure."""
    before, after, real = values(run, name)
    was, now = shown(name, before), shown(name, after)
    aside = f" (real clips: {shown(name, real)})" if measure_of(name).aim == "real" and real is not None else ""
    if was == now:
        return f"{SUBJECTS[name]} stayed at {now}{aside}"
    if change(name, before, after, real, clip_count(run)) == "same" and not measure_of(name).share:
        return f"{SUBJECTS[name]} hardly moved, from {was} to {now}{aside}"
    verb = "rose" if (after or 0) > (before or 0) else "fell"
    return f"{SUBJECTS[name]} {verb} from {was} to {now}{aside}"


def _chance(run: RunFolder, name: str) -> str:
    before, after, _ = values(run, name)
    clips = clip_count(run) if measure_of(name).share and before != after else None
    return f", which may be chance with {clips} clips" if clips else ""


def _kept(run: RunFolder) -> list[str]:
    """How near the dynamic degree and the objects' area are to real clips'."""
    near: dict[bool, list[str]] = {True: [], False: []}
    for name in GUARDS:
        _, after, real = values(run, name)
        if after is not None and real is not None:
            near[abs(after - real) <= NEAR * abs(real)].append(measure_of(name).label)
    said = {True: "within a tenth of real clips'", False: "still more than a tenth off real clips'"}
    return [f"{_list(near[k])} {'is' if len(near[k]) == 1 else 'are'} {said[k]}" for k in (True, False) if near[k]]


def _hacked(reward: tuple[float, float], worse: Sequence[str], better: Sequence[str]) -> str:
    before, after = map(number, reward)
    rest = f", though {_list(better)}" if better else ""
    return (
        f"The critic it was trained on rose from {before} to {after}, but {_list(worse)}{rest}: "
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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
