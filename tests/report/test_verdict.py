"""The sentence at the top of the page: it says what the numbers say, the bad along with the good."""

from pathlib import Path

import pytest

from besttake.report.folder import RunFolder
from besttake.report.measures import DASH, MINUS, change, difference, number
from besttake.report.verdict import verdict

BEFORE = {
    "flawed_share": 0.6,
    "heldout_reward": -1.3,
    "frechet_distance": 40.0,
    "dynamic_degree": 0.34,
    "object_area": 78,
}
GOOD = {
    "flawed_share": 0.2,
    "heldout_reward": -0.2,
    "frechet_distance": 10.0,
    "dynamic_degree": 0.36,
    "object_area": 88,
}
REAL = {"flawed_share": 0.0, "heldout_reward": 0.0, "frechet_distance": 3.0, "dynamic_degree": 0.37, "object_area": 91}
ROSE = ({"training_reward/a": -2.0, "training_reward/b": -1.0}, {"training_reward/a": -0.5, "training_reward/b": -1.1})


def run_with(before=None, after=None, real=REAL, rows=(), algorithm="onlinevpo", clips=64, weights=None, q=None):
    config = {"algorithm": algorithm, "steps": 40}
    if algorithm == "onlinevpo":
        config["reward"] = {"name": "world", "weights": weights or {}}
    summary = None if after is None else {"before": BEFORE | (before or {}), "after": after, "real": real}
    return RunFolder(Path("run"), config, list(rows), summary, {"clips": clips}, [], {}, q or {})


def plain(text):
    return text.replace(MINUS, "-")


def test_better():
    said = verdict(run_with(after=GOOD))
    assert said.kind == "better"
    assert "visibly flawed clips fell from 60% to 20%" in plain(said.sentence)
    assert "the held-out critic rose from -1.3 to -0.2" in plain(said.sentence)
    assert "the Fréchet distance to clean clips fell from 40 to 10" in plain(said.sentence)
    assert "dynamic degree and object area are within a tenth of real clips'" in plain(said.sentence)


def test_worse():
    said = verdict(run_with(after={"flawed_share": 0.9, "heldout_reward": -2.0, "frechet_distance": 60.0}))
    assert said.kind == "worse"
    assert "got worse: visibly flawed clips rose from 60% to 90%" in plain(said.sentence)
    assert "better" not in plain(said.sentence)


def test_good_and_bad_are_both_reported():
    said = verdict(run_with(after=GOOD | {"frechet_distance": 60.0}))
    assert said.kind == "mixed"
    assert said.sentence.startswith("Worse: the Fréchet distance to clean clips rose from 40 to 60. Better: ")


def test_every_measure_that_got_worse_is_named_first_wherever_the_table_has_it():
    """As of a summary with a test of each change: whatever the size, and however the main ones rose."""
    small = {"object_area": 87.8, "share/tint": 0.1, "colour_right": 0.95, "grain": 0.02, "reward/x/y": 1.0}
    worse = {"object_area": 85.2, "share/tint": 0.3, "colour_right": 0.9, "grain": 0.021, "reward/x/y": 0.9}
    real = REAL | {"grain": 0.01, "reward/x/y": 1.2}
    surely = dict.fromkeys((*GOOD, *worse), 0.001)
    run = run_with(before=small, after=GOOD | worse, real=real, q=surely)
    said = verdict(run)
    assert said.kind == "mixed"
    assert plain(said.sentence).startswith(
        "Worse: the objects' area fell from 87.8 px to 85.2 px (real clips: 91 px), tint rose from 10% to 30%, "
        "colour as in the caption fell from 95% to 90%, grain rose from 0.02 to 0.021 (real clips: 0.01) and "
        "y by x fell from 1 to 0.9 (real clips: 1.2). Better: visibly flawed clips fell from 60% to 20%"
    )
    assert verdict(run_with(before=small, after=GOOD | worse, real=real, q=dict.fromkeys(surely, 0.06))).kind == "same"
    one = surely | dict.fromkeys(worse, 0.2) | {"grain": 0.049}
    assert plain(verdict(run_with(before=small, after=GOOD | worse, real=real, q=one)).sentence).startswith(
        "Worse: grain rose from 0.02 to 0.021 (real clips: 0.01). Better: "
    )


def test_worse_in_shares_is_named_in_summaries_without_a_test():
    said = verdict(run_with(before={"share/tint": 0.1}, after=GOOD | {"share/tint": 0.5}))
    assert said.kind == "mixed"
    assert plain(said.sentence).startswith("Worse: tint rose from 10% to 50%. Better: visibly flawed clips fell")


def test_a_trifle_is_not_called_better_however_sure():
    q = dict.fromkeys(GOOD, 0.001)
    said = verdict(run_with(after=BEFORE | {"heldout_reward": -1.299, "frechet_distance": 39.9}, q=q))
    assert said.kind == "same"


@pytest.mark.parametrize(
    ("after", "q", "kind", "message"),
    [
        (0.5, 0.01, "unknown", "Only critics' scores were measured. Steady by flicker rose from 0.4 to 0.5."),
        (0.3, 0.01, "worse", "The videos got worse: steady by flicker fell from 0.4 to 0.3."),
        (0.3, 0.2, "unknown", "None of their scores changed clearly."),
    ],
)
def test_without_measures_critics_count(after, q, kind, message):
    name = "reward/flicker/steady"
    summary = {"before": {name: 0.4}, "after": {name: after}, "real": {}}
    run = RunFolder(Path("run"), {"algorithm": "sft"}, [], summary, {"clips": 9}, [], {}, {name: q})
    said = verdict(run)
    assert said.kind == kind
    assert message in plain(said.sentence)


def test_motion_that_only_a_critic_saw_go_is_hacking_too():
    names = {"training_reward/a": (-2.0, -0.5), "reward/dynamic-degree/dynamic degree": (0.4, 0.2)}
    summary = {column: {n: v[i] for n, v in names.items()} for i, column in enumerate(("before", "after"))} | {
        "real": {}
    }
    config = {"algorithm": "onlinevpo", "reward": {"name": "world"}}
    said = verdict(RunFolder(Path("run"), config, [], summary, {"clips": 9}, [], {}, dict.fromkeys(names, 0.01)))
    assert said.kind == "hacked"
    assert plain(said.sentence).startswith("Worse: dynamic degree fell from 0.4 to 0.2, though ")


def test_objects_that_swell_are_reported():
    said = verdict(run_with(after=GOOD | {"object_area": 124}))
    assert said.kind == "mixed"
    assert "the objects' area rose from 78 px to 124 px (real clips: 91 px)" in plain(said.sentence)


def test_no_change():
    said = verdict(run_with(after=BEFORE))
    assert said.kind == "same"
    assert "stayed at 60%" in plain(said.sentence)


def test_a_distance_alone_is_not_called_better():
    said = verdict(run_with(after=BEFORE | {"frechet_distance": 30.0, "heldout_reward": -1.296}))
    assert said.kind == "same"
    assert said.label == "Hardly a change"
    assert "the held-out critic stayed at -1.3" in plain(said.sentence)
    assert "rose" not in said.sentence


def test_chance_is_no_improvement():
    after = BEFORE | {"flawed_share": 0.5}
    said = verdict(run_with(after=after))
    assert said.kind == "same"
    assert "which may be chance with 64 clips" in plain(said.sentence)
    assert verdict(run_with(after=after, clips=2000)).kind == "better"


@pytest.mark.parametrize("loss", [{"heldout_reward": -2.0}, {"dynamic_degree": 0.2}])
def test_hacking_is_named(loss):
    said = verdict(run_with(before=ROSE[0], after=GOOD | ROSE[1] | loss))
    assert said.kind == "hacked"
    assert "The critic it was trained on rose from -1.5 to -0.8" in plain(said.sentence)
    assert "rather than to make better videos" in plain(said.sentence)


def test_hacking_is_seen_in_the_validation_passes():
    rows = [{"step": step, "eval/world/a": step / 10} for step in (0, 20, 40)]
    assert verdict(run_with(after=GOOD | {"heldout_reward": -2.0}, rows=rows)).kind == "hacked"
    assert verdict(run_with(after=GOOD | {"heldout_reward": -2.0}, rows=rows[::-2][1:])).kind == "mixed"


def test_only_what_was_trained_on_counts_as_its_reward():
    after = GOOD | ROSE[1] | {"heldout_reward": -2.0}
    assert verdict(run_with(before=ROSE[0], after=after, weights={"a": 1.0})).kind == "hacked"
    assert verdict(run_with(before=ROSE[0], after=after, weights={"b": 1.0})).kind == "mixed"
    assert verdict(run_with(before=ROSE[0], after=after, algorithm="sft")).kind == "mixed"


def test_motion_that_falls_to_that_of_real_clips_is_no_hacking():
    lively = {"dynamic_degree": 0.5} | ROSE[0]
    assert verdict(run_with(before=lively, after=GOOD | ROSE[1])).kind == "better"
    assert verdict(run_with(before=lively, after=GOOD | ROSE[1] | {"dynamic_degree": 0.35}, real={})).kind == "hacked"


def test_less_motion_in_better_videos_is_mixed():
    less = GOOD | ROSE[1] | {"dynamic_degree": 0.30}
    assert verdict(run_with(before=ROSE[0] | {"dynamic_degree": 0.47}, after=less)).kind == "mixed"


def test_without_summary():
    said = verdict(run_with(rows=[{"step": 11, "train/loss": 0.7}]))
    assert said.kind == "unknown"
    assert "no summary.json" in plain(said.sentence)
    assert "12 of 40 steps" in plain(said.sentence)


def test_nothing_to_compare():
    assert verdict(run_with(after={"odd": 1.0})).kind == "unknown"


@pytest.mark.parametrize(
    ("name", "before", "after", "real", "expected"),
    [
        ("frechet_distance", 40, 10, None, "better"),
        ("frechet_distance", 40, 39.8, None, "same"),
        ("heldout_reward", -1, -2, 0, "worse"),
        ("object_area", 78, 88, 91, "better"),
        ("object_area", 90, 87, 91, "same"),
        ("object_area", 88, 124, 91, "worse"),
        ("object_area", 88, 124, None, "unknown"),
        ("share/flicker", 0.2, 0.1, 0.0, "better"),
        ("heldout_reward", None, 1, 0, "unknown"),
    ],
)
def test_change(name, before, after, real, expected):
    assert change(name, before, after, real) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-1.3, "-1.3"), (1234.4, "1234"), (0.0316, "0.0316"), (2e-5, "2e-5"), (-0.2514, "-0.251")],
)
def test_number(value, text):
    assert plain(number(value)) == text


def test_difference_reads_as_the_measure_does():
    assert plain(difference("flawed_share", 0.6, 0.2)) == "-40 points"
    assert plain(difference("flawed_share", 0.05, 0.05)) == "±0 points"
    assert plain(difference("frechet_distance", 40, 10)) == "-75%"
    assert plain(difference("heldout_reward", -1.3, -0.2)) == "+1.1"
    assert difference("heldout_reward", None, 1) == DASH
