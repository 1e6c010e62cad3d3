"""The charts of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from besttake.report.chart import MOST_POINTS, Level, Line, chart
from besttake.report.critics import HELDOUT, panel_critics, trained_critic, validation_critics, validation_scores
from besttake.report.folder import RunFolder
from besttake.report.verdict import values

PAIRWISE = "dpo/implicit_accuracy"
"""Metric of the algorithms that learn from pairs."""

DYNAMIC = "dynamic-degree"


def reward_charts(run: RunFolder) -> list[Markup]:
    """Charts of the training critic, the held-out critic, and the other validation critics."""
    trained, panel = trained_critic(run), panel_critics(run)
    others = [critic for critic in validation_critics(run) if critic not in (trained, HELDOUT, DYNAMIC)]
    validation = [_validation(run, critic, "trained on" if critic in panel else "not trained on") for critic in others]
    charts = [_trained(run, trained)] if trained else [_panel(run, panel)] if panel else validation
    charts.append(_validation(run, HELDOUT, "never trained on", _real(run, "heldout_reward")))
    charts += validation if trained or panel else []
    return [drawn for drawn in charts if drawn]


def training_charts(run: RunFolder) -> list[Markup]:
    """Small charts of the training metrics."""
    chance = Level("chance", 0.5)
    no_preference = (
        Level("ln 2: no preference yet", math.log(2)) if run.points(PAIRWISE) and not _several_negatives(run) else None
    )
    many = len(run.points("dpo/reference_distance")) > MOST_POINTS
    charts = [
        _chart(
            run,
            "Winner and loser error",
            "The winner's should fall; the loser's may rise",
            ["dpo/winner_error", "dpo/loser_error"],
        ),
        _chart(
            run,
            "Winner and loser gain",
            "Improvement over the reference; above 0 is better",
            ["dpo/winner_gain", "dpo/loser_gain"],
        ),
        _chart(run, "Margin", "Implicit reward difference of winner and loser", ["dpo/margin"], Level("none", 0.0)),
        _chart(
            run,
            "Implicit accuracy",
            "Fraction of pairs that the policy ranks correctly",
            ["dpo/implicit_accuracy"],
            chance,
        ),
        _chart(
            run,
            "Drift",
            "Distance of the policy from the reference; falls at each refresh",
            ["dpo/reference_distance"],
            noisy=many,
        ),
        chart(
            "Dynamic degree",
            [Line("dynamic degree", validation_scores(run, DYNAMIC))],
            "Of the validation clips; falls if motion freezes",
        ),
        _chart(
            run,
            "Ties",
            "Prompts of a step whose candidates score equally, or within the margin",
            ["pairs/ties", "pairs/below_margin"],
        ),
        _chart(run, "Score spread", "Best minus worst candidate of a prompt", ["pairs/score_spread"]),
        _chart(run, "Loss", "", ["train/loss"], no_preference),
        _chart(run, "Gradient norm", "Before clipping", ["train/grad_norm"]),
        _chart(run, "Learning rate", "", ["train/lr"], noisy=False),
    ]
    return [drawn for drawn in charts if drawn]


def _trained(run: RunFolder, critic: str) -> Markup:
    lines = [
        Line("fixed prompts", validation_scores(run, critic), "one"),
        Line("samples of each step", run.points("reward/mean"), "two", noisy=True),
    ]
    return chart(f"Training critic: {critic}", lines, "The training reward", big=True)


def _panel(run: RunFolder, critics: Sequence[str]) -> Markup:
    lines = [Line("combined", run.points("reward/mean"), "two", noisy=True)]
    return chart(f"Training critics: {', '.join(critics)}", lines, "The training reward", big=True)


def _validation(run: RunFolder, critic: str, word: str, level: Level | None = None) -> Markup:
    title = "Held-out critic" if critic == HELDOUT else f"Critic: {critic}"
    return chart(title, [Line("fixed prompts", validation_scores(run, critic))], word.capitalize(), level, big=True)


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


def _several_negatives(run: RunFolder) -> bool:
    """Whether there are several losers per winner, so that the loss does not start at ln 2."""
    negatives = run.config.get("negatives", 1)
    return isinstance(negatives, int) and negatives > 1
