"""Which curves of a run are drawn, and what each of them tells."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from besttake.report.chart import MOST_POINTS, Level, Line, chart
from besttake.report.critics import HELDOUT, looks, panel_critics, trained_critic, watching_critics
from besttake.report.folder import RunFolder
from besttake.report.verdict import values

PAIRWISE = "dpo/implicit_accuracy"
"""Logged by the algorithms that learn from pairs."""

DYNAMIC = "dynamic-degree"


def reward_charts(run: RunFolder) -> list[Markup]:
    """The critic the run learned from, the held-out one, and whatever other critic watched."""
    trained, panel = trained_critic(run), panel_critics(run)
    others = [critic for critic in watching_critics(run) if critic not in (trained, HELDOUT, DYNAMIC)]
    watching = [_watching(run, critic, "trained on" if critic in panel else "not trained on") for critic in others]
    charts = [_trained(run, trained)] if trained else [_panel(run, panel)] if panel else watching
    charts.append(_watching(run, HELDOUT, "never trained on", _real(run, "heldout_reward")))
    charts += watching if trained or panel else []
    return [drawn for drawn in charts if drawn]


def training_charts(run: RunFolder) -> list[Markup]:
    """Small charts of what happened to the policy."""
    half = Level("chance", 0.5)
    equal = Level("ln 2: no preference yet", math.log(2)) if run.points(PAIRWISE) and not _negatives(run) else None
    long = len(run.points("dpo/reference_distance")) > MOST_POINTS
    charts = [
        _chart(
            run,
            "Winner and loser error",
            "Should fall for winners; losers' may rise",
            ["dpo/winner_error", "dpo/loser_error"],
        ),
        _chart(
            run,
            "Winner and loser gain",
            "Over the reference; above 0 = better at it",
            ["dpo/winner_gain", "dpo/loser_gain"],
        ),
        _chart(run, "Margin", "By how much the winner is preferred", ["dpo/margin"], Level("none", 0.0)),
        _chart(run, "Implicit accuracy", "Share of pairs the policy ranks rightly", ["dpo/implicit_accuracy"], half),
        _chart(
            run,
            "Drift",
            "Distance of policy and reference; falls at each refresh",
            ["dpo/reference_distance"],
            noisy=long,
        ),
        chart(
            "Dynamic degree",
            [Line("dynamic degree", looks(run, DYNAMIC))],
            "Of the fixed prompts' clips; falls when motion freezes",
        ),
        _chart(
            run, "Ties", "Prompts of a step whose takes score alike, or nearly", ["pairs/ties", "pairs/below_margin"]
        ),
        _chart(run, "Score spread", "Best minus worst take of a prompt", ["pairs/score_spread"]),
        _chart(run, "Loss", "", ["train/loss"], equal),
        _chart(run, "Gradient norm", "Before clipping", ["train/grad_norm"]),
        _chart(run, "Learning rate", "", ["train/lr"], noisy=False),
    ]
    return [drawn for drawn in charts if drawn]


def _trained(run: RunFolder, critic: str) -> Markup:
    lines = [
        Line("fixed prompts", looks(run, critic), "one"),
        Line("each step's own takes", run.points("reward/mean"), "two", noisy=True),
    ]
    return chart(f"Training critic: {critic}", lines, "What the run learns from", big=True)


def _panel(run: RunFolder, critics: Sequence[str]) -> Markup:
    lines = [Line("together", run.points("reward/mean"), "two", noisy=True)]
    return chart(f"Training critics: {', '.join(critics)}", lines, "What the run learns from", big=True)


def _watching(run: RunFolder, critic: str, word: str, level: Level | None = None) -> Markup:
    title = "Held-out critic" if critic == HELDOUT else f"Critic: {critic}"
    return chart(title, [Line("fixed prompts", looks(run, critic))], word.capitalize(), level, big=True)


def _real(run: RunFolder, name: str) -> Level | None:
    value = values(run, name)[2]
    return None if value is None else Level("real clips", value)


def _chart(
    run: RunFolder, title: str, note: str, names: list[str], level: Level | None = None, noisy: bool = True
) -> Markup:
    colours = ("one", "two")
    lines = [
        Line(name.rpartition("/")[2].replace("_", " "), run.points(name), colour, noisy)
        for name, colour in zip(names, colours, strict=False)
    ]
    return chart(title, lines, note, level)


def _negatives(run: RunFolder) -> bool:
    """Whether a winner has several losers, so that the loss starts at a multiple of ln 2."""
    negatives = run.config.get("negatives", 1)
    return isinstance(negatives, int) and negatives > 1
