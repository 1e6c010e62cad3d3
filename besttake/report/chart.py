"""Line charts as HTML: the lines are an SVG stretched over the plot, the labels are HTML text of fixed size.

A chart scales to phones and paper and is readable without JavaScript; a script only shows the values under the pointer,
from the numbers in `data-chart`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from besttake.report.folder import Points
from besttake.report.measures import number

MOST_POINTS = 400
"""Longer curves are thinned evenly to this many points, the resolution of a plot."""

FEW_POINTS = 12
"""Curves up to this many points are drawn unsmoothed with a dot for each; longer noisy ones are smoothed."""


@dataclass(frozen=True)
class Line:
    """A named curve, and the CSS class of its colour.

    Points of a `noisy` curve are drawn faintly under a smoothed line, unless they are few.
    """

    name: str
    points: Points
    colour: str = "one"
    noisy: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal reference line."""

    name: str
    value: float


def chart(title: str, lines: Sequence[Line], note: str = "", level: Level | None = None, big: bool = False) -> Markup:
    """A chart as HTML figure, its texts escaped; "" without points."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup()
    ys = [y for line in lines for _, y in line.points] + ([level.value] if level else [])
    xs = [x for line in lines for x, _ in line.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5, whole=True), ticks(min(ys), max(ys), 4)
    box = _Box(min(xs), max(max(xs), min(xs) + 1), min(y_ticks[0], *ys), max(y_ticks[-1], *ys))
    drawn = "".join(_draw(line, box) for line in lines)
    data = {
        "box": [box.left, box.right, box.low, box.high],
        "lines": [[line.name, line.colour, _hover(line)] for line in lines],
    }
    legend = "".join(f'<li class="{line.colour}"><i></i>{escape(line.name)}</li>' for line in lines)
    if level:
        legend += f'<li class="level"><i></i>{escape(level.name)}</li>'
    return Markup(
        f'<figure class="chart{" big" if big else ""}" data-chart="{escape(json.dumps(data))}">'
        f"<figcaption><b>{escape(title)}</b>{f'<small>{escape(note)}</small>' if note else ''}"
        f"{f'<ul>{legend}</ul>' if len(lines) > 1 or level else ''}</figcaption>"
        f'<div class="plot" tabindex="0" role="img" aria-label="{escape(_description(title, lines, level))}">'
        f"{_axes(x_ticks, y_ticks, box)}"
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f"{_grid(y_ticks, box)}{_level(level, box)}{drawn}</svg></div></figure>"
    )


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers that enclose [low, high]; with `whole`, whole numbers within it (for steps)."""
    if low == high:
        return [low] if whole else ticks(low - abs(low) * 0.1 - (low == 0), high + abs(high) * 0.1 + (high == 0), count)
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first, last = (math.ceil, math.floor) if whole else (math.floor, math.ceil)
    return [round(i * step, 12) for i in range(first(low / step), last(high / step) + 1)]


def smoothed(points: Points) -> Points:
    """Smooth with a Gaussian whose standard deviation is a thirtieth of the curve."""
    width = max(1.0, len(points) / 30)
    reach = math.ceil(3 * width)
    values = [y for _, y in points]
    result = []
    for i, (x, _) in enumerate(points):
        near = range(max(0, i - reach), min(len(points), i + reach + 1))
        weights = [math.exp(-0.5 * ((j - i) / width) ** 2) for j in near]
        result.append((x, sum(w * values[j] for w, j in zip(weights, near, strict=True)) / sum(weights)))
    return result


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` evenly chosen points, including the last one."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        """Measured from the top, like screen coordinates."""
        return (self.high - value) / (self.high - self.low)

    def at(self, x: float, y: float) -> str:
        return f"{1000 * self.x(x):.1f} {1000 * self.y(y):.1f}"


def _draw(line: Line, box: _Box) -> str:
    smooth = line.noisy and len(line.points) > FEW_POINTS
    points = thinned(smoothed(line.points)) if smooth else thinned(line.points)
    path = "M" + "L".join(box.at(x, y) for x, y in points)
    marks = thinned(line.points) if smooth or len(line.points) <= 2 * FEW_POINTS else []
    dots = "".join(f"M{box.at(x, y)}h.01" for x, y in marks)  # a round cap on a line of almost no length is a dot
    points_drawn = f'<path class="{"raw" if smooth else "dots"}" d="{dots}"/>' if dots else ""
    return f'<g class="{line.colour}">{points_drawn}<path class="line" d="{path}"/></g>'


def _hover(line: Line) -> list[list[float | str]]:
    """x, y and the label of y for every point of the pointer script."""
    points = thinned(line.points)
    mean = dict(smoothed(line.points)) if line.noisy and len(line.points) > FEW_POINTS else {}
    return [[x, y, number(y) + (f" (smoothed {number(mean[x])})" if x in mean else "")] for x, y in points]


def _level(level: Level | None, box: _Box) -> str:
    return f'<path class="level" d="M{box.at(box.left, level.value)}H1000"/>' if level else ""


def _grid(y_ticks: Sequence[float], box: _Box) -> str:
    return f'<path class="grid" d="{"".join(f"M{box.at(box.left, y)}H1000" for y in y_ticks)}"/>'


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], box: _Box) -> str:
    labels = [f"step {number(x, 6)}" if i == 0 else number(x, 6) for i, x in enumerate(x_ticks)]
    named = zip(x_ticks, labels, strict=True)
    across = "".join(f'<span class="x" style="left:{100 * box.x(x):.2f}%">{label}</span>' for x, label in named)
    up = "".join(f'<span class="y" style="top:{100 * box.y(y):.2f}%">{number(y)}</span>' for y in y_ticks)
    return f'<div class="axes" aria-hidden="true">{up}{across}</div>'


def _description(title: str, lines: Sequence[Line], level: Level | None) -> str:
    """The chart as text, for screen readers."""
    parts = []
    for line in lines:
        curve = smoothed(line.points) if line.noisy and len(line.points) > FEW_POINTS else line.points
        (first, start), (last, end) = curve[0], curve[-1]
        parts.append(f"{line.name} from {number(start)} at step {first:g} to {number(end)} at step {last:g}")
    return f"{title}: {'; '.join(parts)}" + (f"; {level.name}: {number(level.value)}" if level else "") + "."
