"""Report on the agreement of critics with human votes: a Markdown table and an SVG dot plot with intervals.

The plot scales, follows the reader's dark mode, and needs no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from besttake.data.files import atomic
from besttake.evaluation.agreement import CHANCE, AgreementConfig, CriticAgreement, markdown, measure_agreement
from besttake.evaluation.ranking import Interval

PANELS = 3
"""Number of figures in the plot, from the leading one on."""

PANEL, GAP, TOP, ROW, LETTER = 190, 34, 98, 32, 7.6
"""Pixels: width of a panel, gap between panels, height of the headings, height of a row, width of a letter."""

STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1c1f24; }
  .title { font-size: 17px; font-weight: 650; } .head { font-weight: 600; }
  .soft { fill: #5a616b; font-size: 12px; font-variant-numeric: tabular-nums; }
  .paper { fill: #fbfaf7; } .grid { stroke: #ece9e3; } line { stroke-linecap: round; }
  .level { stroke: #5a616b; stroke-width: 1.5; stroke-dasharray: 1 5; }
  .whisker { stroke: #1f66a8; stroke-width: 2; opacity: .45; } .dot { fill: #1f66a8; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8e6e1; } .soft { fill: #a3a8b1; } .paper { fill: #14161a; } .grid { stroke: #272b32; }
    .level { stroke: #a3a8b1; } .whisker { stroke: #76b6f1; } .dot { fill: #76b6f1; }
  }
"""


def report_agreement(config: AgreementConfig) -> str:
    """Measure the agreement, write `agreement.md` and `agreement.svg` into `config.out`, and return the table.

    Raises:
        ValueError: see `measure_agreement`.
    """
    rows = measure_agreement(config)
    table, title = markdown(rows), f"Agreement with human votes in {config.benchmark.name}"
    for name, text in (("agreement.md", table), ("agreement.svg", dots(title, rows))):
        with atomic(config.out / name) as part:
            part.write_text(text, encoding="utf-8")
    return table


def dots(title: str, rows: Sequence[CriticAgreement], note: str = "dots with 95 % intervals; dotted: chance") -> str:
    """An SVG with one row per critic and one panel per figure; each value is a dot on the line of its interval.

    Figures are in [0, 1]; the row `CHANCE` is drawn as a dotted line.
    """
    critics = [row for row in rows if row.critic != CHANCE]
    chance = next((row.figures for row in rows if row.critic == CHANCE), {})
    figures = list(rows[0].figures)[:PANELS]
    left = round(46 + LETTER * max(len(row.critic) for row in critics))
    width, height = max(left + len(figures) * (PANEL + GAP), 520), TOP + ROW * len(critics) + 44
    names = "".join(
        f'<text x="{left - 22}" y="{_middle(i) + 5}" text-anchor="end">{escape(row.critic)}</text>'
        for i, row in enumerate(critics)
    )
    panels = "".join(
        _panel(left + k * (PANEL + GAP), name, [row.figures[name] for row in critics], chance.get(name))
        for k, name in enumerate(figures)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(_description(title, critics, figures))}"><style>{STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height}" rx="12"/>'
        f'<text class="title" x="24" y="34">{escape(title)}</text>'
        f'<text class="soft" x="24" y="54">{escape(note)}</text>'
        f"{names}{panels}</svg>\n"
    )


def _middle(row: int) -> float:
    return TOP + ROW * (row + 0.5)


def _panel(left: float, name: str, values: Sequence[Interval], chance: Interval | None) -> str:
    bottom = TOP + ROW * len(values)
    marks = [f'<text class="head" x="{left}" y="{TOP - 12}">{escape(name)}</text>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + PANEL * tick
        marks.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        marks.append(f'<text class="soft" x="{x}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>')
    if chance:
        x = left + PANEL * chance.value
        marks.append(f'<line class="level" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
    for i, value in enumerate(values):
        if np.isfinite(value.value):
            low, middle, high = (left + PANEL * share for share in (value.low, value.value, value.high))
            y = _middle(i)
            marks.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
            marks.append(f'<circle class="dot" cx="{middle:.1f}" cy="{y}" r="5"/>')
    return "".join(marks)


def _description(title: str, critics: Sequence[CriticAgreement], figures: Sequence[str]) -> str:
    """The plot as text, for screen readers."""
    rows = [f"{row.critic} {', '.join(f'{name} {row.figures[name].value:.2f}' for name in figures)}" for row in critics]
    return f"{title}: {'; '.join(rows)}."
