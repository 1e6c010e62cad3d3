"""One measure as the page shows it."""

from pathlib import Path

import pytest

from besttake.report.folder import RunFolder
from besttake.report.measures import DASH
from besttake.report.rows import brief_rows, grouped_rows, row_of

BEFORE = {"flawed_share": 0.5, "share/blur": 0.4, "odd": -1.0, "training_reward/a": 1.0}
AFTER = {"flawed_share": 0.25, "share/blur": 0.4, "odd": 3.0, "training_reward/a": 2.0}


@pytest.fixture
def run():
    summary = {"before": BEFORE, "after": AFTER, "real": {"flawed_share": 0.0}}
    return RunFolder(Path("run"), {}, [], summary, {"clips": 64}, [], {})


def test_values_and_marks_on_a_line(run):
    row = row_of(run, "flawed_share")
    assert (row.before, row.after, row.real, row.change, row.mark) == ("50%", "25%", "0%", "better", "✓ better")
    assert row.track == [
        ("bar", "left:50.0%;width:50.0%"),
        ("real", "left:0.0%"),
        ("after", "left:50.0%"),
        ("before", "left:100.0%"),
    ]
    odd = row_of(run, "odd")
    assert (odd.real, odd.has_real) == (DASH, False)
    assert odd.track[1:] == [("after", "left:100.0%"), ("before", "left:0.0%")]  # from -1 to 3


def test_every_measure_is_in_one_group(run):
    groups, others = grouped_rows(run)
    titles = {title: [row.label for row in rows] for title, rows in groups}
    assert [row.label for row in others] == ["odd"]
    assert titles["Share of clips with this flaw"] == ["blur"]
    assert sum(map(len, titles.values())) == 3
    assert [row.after for row in brief_rows(run)] == ["25%"]
