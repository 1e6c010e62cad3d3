import json
import os

import numpy as np
import pytest
import torch
import tyro

from besttake.data.video import write_video
from besttake.data.votes import read_votes
from besttake.evaluation.agreement import (
    CHANCE,
    AgreementConfig,
    ScoredVote,
    compare,
    markdown,
    measure_agreement,
    score_benchmark,
)
from besttake.types import Score

GROUPS = [("one", (0,)), ("two", (2,)), ("three", (1,)), ("four", (0, 3))]
"""Prompts of four candidates each, and the best of them."""


def scored(how):
    return [ScoredVote(prompt, [how(i in best, i) for i in range(4)], best) for prompt, best in GROUPS]


CRITICS = {
    "always wrong": scored(lambda good, i: -float(good)),
    "always right": scored(lambda good, i: float(good) + i / 100),
    "the first": scored(lambda good, i: -float(i)),
}


def test_critics_are_compared_best_first_and_chance_last():
    rows = compare(CRITICS, n_resamples=200)
    assert [row.critic for row in rows] == ["always right", "the first", "always wrong", CHANCE]
    assert [row.figures["recall@1"].value for row in rows] == [1, 0.5, 0, pytest.approx((3 * 1 / 4 + 2 / 4) / 4)]
    right, first, wrong, _ = rows
    assert right.figures["MRR"].value == right.figures["pairwise accuracy"].value == 1
    assert wrong.figures["pairwise accuracy"].value == 0
    assert first.figures["MRR"].value == pytest.approx((1 + 1 / 3 + 1 / 2 + 1) / 4)
    assert first.figures["pairwise accuracy"].value == pytest.approx((3 + 1 + 2 + 2) / 13)
    assert right.against_best is None
    assert (first.against_best.value, wrong.against_best.value) == (-0.5, -1)
    assert -1 <= first.against_best.low < -0.5 < first.against_best.high <= 0


def test_votes_of_one_prompt_are_resampled_together():
    judged = {"critic": [ScoredVote("same", [1.0, 0.0], (0,)), ScoredVote("same", [1.0, 0.0], (1,))] * 50}
    accuracy = compare(judged, n_resamples=50)[0].figures["pairwise accuracy"]
    assert (accuracy.low, accuracy.value, accuracy.high) == (0.5, 0.5, 0.5)


def test_pairs_are_led_by_their_accuracy_and_ties_have_their_own():
    votes = [
        ScoredVote("one", [2.0, 0.0], (0,)),
        ScoredVote("two", [0.0, 2.0], (0,)),
        ScoredVote("three", [0.0, 0.1], (0, 1)),
        ScoredVote("four", [3.0, 1.0], (0,)),
    ]
    row, chance = compare({"critic": votes}, n_resamples=50)
    assert list(row.figures) == ["pairwise accuracy", "accuracy with ties"]
    assert [figure.value for figure in row.figures.values()] == pytest.approx([2 / 3, 3 / 4])
    assert chance.figures["pairwise accuracy"].value == 0.5
    assert "accuracy with ties" not in chance.figures


def test_the_table_has_a_row_a_critic_and_a_column_a_figure():
    head, line, *rows = markdown(compare(CRITICS, n_resamples=50)).splitlines()
    assert head == (
        "| critic | recall@1 | recall@3 | MRR | Kendall tau-b | pairwise accuracy | accuracy with ties "
        "| recall@1, against the best |"
    )
    assert line.count("---") == 8
    assert [row.count("|") for row in rows] == [9] * 4
    assert rows[0].startswith("| always right | 1.00 | 1.00 | 1.00 | 0.73 ")  # (3 / sqrt(18) * 3 + 4 / sqrt(24)) / 4
    assert " -0.50 (-" in rows[1]


class Brightness:
    """A critic of two dimensions; it counts what it was shown."""

    name, dimensions, differentiable, card = "brightness", ("light", "dark"), True, None

    def __init__(self):
        self.calls = []

    def __call__(self, videos, prompts, fps=8.0):
        assert len(videos) == len(prompts) == 1
        self.calls.append((tuple(videos.shape[1:]), prompts[0], fps))
        light = videos.mean((1, 2, 3, 4))
        return Score(torch.stack([light, -light], 1), self.dimensions)


@pytest.fixture
def benchmark(tmp_path):
    """Three videos of each of two prompts, the brightest being the best; and a pair that shares videos with one."""
    for name, light in (("a", -0.5), ("b", 0.0), ("c", 0.5)):
        write_video(tmp_path / f"{name}.mp4", torch.full((4, 3, 32, 32), light), 12)
    videos = ["a.mp4", "b.mp4", "c.mp4"]
    rows = [{"prompt": prompt, "videos": videos, "best": 2, "size": [16, 16]} for prompt in ("a cat", "a dog")]
    rows.append({"prompt": "a cat", "a": "c.mp4", "b": "a.mp4", "winner": "a", "size": [16, 16]})
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_file_is_scored_once_for_each_prompt_at_its_own_rate(benchmark, tmp_path):
    critic, votes = Brightness(), read_votes(benchmark)
    scores = score_benchmark(votes, critic, "brightness", tmp_path / "scores.jsonl")
    assert len(critic.calls) == 6
    assert critic.calls[0] == ((4, 3, 16, 16), "a cat", 12)
    assert [len(row) for row in scores] == [3, 3, 2]
    assert scores[2] == [scores[0][2], scores[0][0]]
    assert scores[0][2]["light"] == pytest.approx(0.5, abs=0.02)


def test_scoring_goes_on_where_it_was_killed(benchmark, tmp_path):
    votes, kept = read_votes(benchmark), tmp_path / "scores.jsonl"
    whole = score_benchmark(votes, Brightness(), "brightness", kept)
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:4]) + lines[4][:20])
    critic = Brightness()
    assert score_benchmark(votes, critic, "brightness", kept) == whole
    assert len(critic.calls) == 2
    assert kept.read_text() == "".join(lines)


def test_all_videos_that_cannot_be_scored_are_named_once_the_others_are_kept(benchmark, tmp_path):
    votes, kept = read_votes(benchmark), tmp_path / "scores.jsonl"
    for name, size in (("a", 200), ("b", 201)):  # of equal content one would speak for both
        (tmp_path / f"{name}.mp4").write_bytes((tmp_path / f"{name}.mp4").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"(?s)4 of 6 videos .*a\.mp4 cannot be read.*b\.mp4 cannot be read"):
        score_benchmark(votes, Brightness(), "brightness", kept)
    assert len(kept.read_text().splitlines()) == 2


def test_a_file_or_a_critic_that_changed_is_scored_again(benchmark, tmp_path):
    votes, kept, critic = read_votes(benchmark), tmp_path / "scores.jsonl", Brightness()
    score_benchmark(votes, critic, "brightness", kept)
    old, file = (tmp_path / "a.mp4").stat(), bytearray((tmp_path / "a.mp4").read_bytes())
    file[-1] ^= 1  # as large and as old as before
    (tmp_path / "a.mp4").write_bytes(file)
    os.utime(tmp_path / "a.mp4", ns=(old.st_atime_ns, old.st_mtime_ns))
    score_benchmark(votes, critic, "brightness", kept)
    assert len(critic.calls) == 6 + 2  # for each of the two prompts
    critic.network = torch.nn.Linear(2, 2)
    score_benchmark(votes, critic, "brightness", kept)
    with torch.no_grad():
        critic.network.weight[1, 0] += 1e-3
    score_benchmark(votes, critic, "brightness", kept)
    assert len(critic.calls) == 8 + 6 + 6


def test_a_file_of_no_scores_is_refused(benchmark, tmp_path):
    (tmp_path / "scores.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match="has no scores"):
        score_benchmark(read_votes(benchmark), Brightness(), "brightness", tmp_path / "scores.jsonl")


def test_critics_by_name_are_there_as_a_whole_and_by_dimension(tmp_path):
    noise = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, amount in (("clean", 0.0), ("grainy", 0.3), ("bad", 1.0)):
        write_video(tmp_path / f"{name}.mp4", (amount * noise).clamp(-1, 1), 8, upscale=8)
    videos = ["bad.mp4", "clean.mp4", "grainy.mp4"]
    prompt = "a small red ball floats about on a grey background"
    (tmp_path / "votes.jsonl").write_text(json.dumps({"prompt": prompt, "videos": videos, "best": 1, "size": [32, 32]}))
    config = AgreementConfig(
        tmp_path / "votes.jsonl",
        ("world", "motion-smoothness"),
        weights={"visual quality": 1.0},
        out=tmp_path / "out",
        n_resamples=10,
        device="cpu",
    )
    rows = {row.critic: row for row in measure_agreement(config)}
    assert set(rows) == {
        *("world", "motion-smoothness", CHANCE),
        *(f"world, {d}" for d in ("visual quality", "temporal consistency", "dynamic degree")),
        *("world, text alignment", "world, factual consistency"),
    }
    assert rows["motion-smoothness"].figures["recall@1"].value == 1
    assert rows["world"].figures == rows["world, visual quality"].figures


def test_critics_are_named_one_flag_each():
    flags = [
        "--benchmark",
        "votes.jsonl",
        "--reward",
        "world",
        "--reward",
        "heldout",
        "--weights",
        "visual quality",
        "1",
    ]
    config = tyro.cli(AgreementConfig, args=flags)
    assert (config.reward, config.weights) == (("world", "heldout"), {"visual quality": 1.0})


def test_a_config_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="each critic once"):
        AgreementConfig(tmp_path, ("world", "world"))
    with pytest.raises(ValueError, match="n_resamples is 0"):
        AgreementConfig(tmp_path, n_resamples=0)


def test_scores_that_say_nothing_are_at_chance_in_every_figure():
    rows = compare({"silent": scored(lambda good, i: 0.0)}, n_resamples=20)
    silent, chance = rows
    for name in ("recall@1", "recall@3", "MRR"):
        assert np.isclose(silent.figures[name].value, chance.figures[name].value)
