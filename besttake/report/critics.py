"""Scores of the training critic and the validation critics over a run."""

from __future__ import annotations

from collections.abc import Mapping

from besttake.report.folder import Points, RunFolder
from besttake.report.measures import TRAINING_REWARD_PREFIX

HELDOUT = "heldout"


def trained_critic(run: RunFolder) -> str | None:
    """The name of the training critic, if the config names a single one."""
    return str(run.critic["name"]) if run.critic else None


def panel_critics(run: RunFolder) -> list[str]:
    """The names of the training critics, if there are several."""
    section = run.config.get("reward")
    critics = section.get("critics") if isinstance(section, dict) else None
    return [str(name) for name in critics] if isinstance(critics, dict) else []


def validation_critics(run: RunFolder) -> list[str]:
    """The validation critics, in the order of their first metrics."""
    return list(dict.fromkeys(name.split("/")[1] for name in run.names if name.startswith("eval/")))


def validation_scores(run: RunFolder, critic: str) -> Points:
    """A critic's score at each validation pass, combined over its dimensions."""
    weights = _weights(run) if critic == trained_critic(run) else {}
    head = f"eval/{critic}/"
    columns = {name.removeprefix(head): dict(run.points(name)) for name in run.names if name.startswith(head)}
    points = []
    for step in sorted(set().union(*columns.values())):
        value = combined({name: column[step] for name, column in columns.items() if step in column}, weights)
        if value is not None:
            points.append((step, value))
    return points


def trained_reward(run: RunFolder) -> tuple[float, float] | None:
    """The training critic's score before and after, from the summary or from the first and last validation pass."""
    if not run.critic:
        return None
    before, after = (_in_summary(run, column) for column in ("before", "after"))
    if before is not None and after is not None:
        return before, after
    validation = validation_scores(run, trained_critic(run) or "")
    return (validation[0][1], validation[-1][1]) if len(validation) > 1 else None


def combined(scores: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """A critic's dimensions combined by `weights`, default equally; None if a weighted dimension is missing."""
    if not scores or not set(weights) <= set(scores):
        return None
    weights = weights or dict.fromkeys(scores, 1 / len(scores))
    return sum(weight * scores[dimension] for dimension, weight in weights.items())


def _in_summary(run: RunFolder, column: str) -> float | None:
    numbers = (run.summary or {}).get(column, {})
    scores = {
        n.removeprefix(f"{TRAINING_REWARD_PREFIX}/"): v
        for n, v in numbers.items()
        if n.startswith(f"{TRAINING_REWARD_PREFIX}/")
    }
    value = combined(scores, _weights(run))
    return value if value is not None else numbers.get(TRAINING_REWARD_PREFIX)


def _weights(run: RunFolder) -> dict[str, float]:
    weights = (run.critic or {}).get("weights")
    return weights if isinstance(weights, dict) else {}
