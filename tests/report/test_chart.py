"""Charts: round ticks, curves that keep their level, and every point where it belongs."""

import json
import re
from html import unescape

import pytest

from besttake.report.chart import Level, Line, chart, smoothed, thinned, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (-1.6, -0.2, [-2, -1.5, -1, -0.5, 0]), (0.021, 0.025, [0.021, 0.022, 0.023, 0.024, 0.025])],
)
def test_ticks_enclose(low, high, expected):
    assert ticks(low, high, 4) == pytest.approx(expected)


def test_ticks_of_steps_are_whole_and_within():
    assert ticks(0, 220, 5, whole=True) == [0, 50, 100, 150, 200]
    assert ticks(3, 5, 5, whole=True) == [3, 4, 5]
    assert ticks(7, 7, 5, whole=True) == [7]


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-9, 1e12])
def test_ticks_of_one_value_surround_it(value):
    found = ticks(value, value, 4)
    assert found[0] < value < found[-1]


def test_smoothing_keeps_a_level_and_quiets_noise():
    assert [y for _, y in smoothed([(i, 2.0) for i in range(50)])] == pytest.approx([2.0] * 50)
    noisy = smoothed([(i, float(i % 2)) for i in range(100)])
    assert max(y for _, y in noisy[10:-10]) - min(y for _, y in noisy[10:-10]) < 0.05


def test_thinning_keeps_the_ends():
    points = [(float(i), 0.0) for i in range(1001)]
    few = thinned(points, 11)
    assert few == [(100.0 * i, 0.0) for i in range(11)]
    assert thinned(points[:5], 11) == points[:5]


def test_points_are_where_they_belong():
    text = chart("Loss", [Line("loss", [(0, 0.0), (5, 0.5), (10, 1.0)])])
    assert 'class="line" d="M0.0 1000.0L500.0 500.0L1000.0 0.0"' in text
    data = json.loads(unescape(re.search(r'data-chart="([^"]*)"', text)[1]))
    assert data["box"] == [0, 10, 0, 1]
    assert data["lines"] == [["loss", "one", [[0, 0.0, "0"], [5, 0.5, "0.5"], [10, 1.0, "1"]]]]


def test_one_point_is_a_dot():
    text = chart("Loss", [Line("loss", [(4, 0.7)], noisy=True)])
    assert 'class="dots"' in text
    assert "step 4" in text


def test_no_point_is_no_chart():
    assert chart("Loss", [Line("loss", [])], level=Level("chance", 0.5)) == ""


def test_words_are_escaped_and_say_what_is_seen():
    text = chart("<b>", [Line("a<b", [(0, 1.0), (1, 2.0)])], level=Level("real clips", 3.0))
    assert "<b>&lt;b&gt;</b>" in text
    assert "a&lt;b from 1 at step 0 to 2 at step 1; real clips: 3." in text
