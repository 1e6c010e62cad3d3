"""What the critics said over a run: the one it learned from, and those that only watched."""

from __future__ import annotations

from collections.abc import Mapping

from besttake.report.folder import Points, RunFolder
from besttake.report.measures import TRAINED

HELDOUT = "heldout"


def trained_critic(run: RunFolder) -> str | None:
    """The name of the critic the run learned from, if its config names one."""
    return str(run.critic["name"]) if run.critic else None


def panel_critics(run: RunFolder) -> list[str]:
    """The names of the critics the run learned from, if there were several."""
    section = run.config.get("reward")
    critics = section.get("critics") if isinstance(section, dict) else None
    return [str(name) for name in critics] if isinstance(critics, dict) else []


def watching_critics(run: RunFolder) -> list[str]:
    """Critics that looked at the run's fixed prompts, in the order in which they were logged."""
    return list(dict.fromkeys(name.split("/")[1] for name in run.names if name.startswith("eval/")))


def looks(run: RunFolder, critic: str) -> Points:
    """What a critic said of the fixed prompts at each look: one number of its dimensions."""
    weights = _weights(run) if critic == trained_critic(run) else {}
    head = f"eval/{critic}/"
    columns = {name.removeprefix(head): dict(run.points(name)) for name in run.names if name.startswith(head)}
    found = []
    for step in sorted(set().union(*columns.values())):
        value = combined({name: column[step] for name, column in columns.items() if step in column}, weights)
        if value is not None:
            found.append((step, value))
    return found


def trained_reward(run: RunFolder) -> tuple[float, float] | None:
    """The critic the run learned from, before and after: by the summary, or else by its first and last look."""
    if not run.critic:
        return None
    before, after = (_in_summary(run, column) for column in ("before", "after"))
    if before is not None and after is not None:
        return before, after
    seen = looks(run, trained_critic(run) or "")
    return (seen[0][1], seen[-1][1]) if len(seen) > 1 else None


def combined(scores: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """One number of a critic's dimensions, all of them equally without weights; None where a weighed one is missing."""
    if not scores or not set(weights) <= set(scores):
        return None
    weights = weights or dict.fromkeys(scores, 1 / len(scores))
    return sum(weight * scores[dimension] for dimension, weight in weights.items())


def _in_summary(run: RunFolder, column: str) -> float | None:
    numbers = (run.summary or {}).get(column, {})
    scores = {n.removeprefix(f"{TRAINED}/"): v for n, v in numbers.items() if n.startswith(f"{TRAINED}/")}
    value = combined(scores, _weights(run))
    return value if value is not None else numbers.get(TRAINED)


def _weights(run: RunFolder) -> dict[str, float]:
    weights = (run.critic or {}).get("weights")
    return weights if isinstance(weights, dict) else {}
