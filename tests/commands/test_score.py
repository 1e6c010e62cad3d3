"""Scores of folders and lists, and the pairs that follow."""

import json
from pathlib import Path

import pytest
import torch

from besttake.commands.flags import from_flags
from besttake.commands.score import ScoreConfig, calibrate_videos, score_videos
from besttake.data.pairs import read_pairs
from besttake.data.video import read_video, write_video
from besttake.evaluation.agreement import AgreementConfig
from besttake.rewards import load_reward

FLICKER, MOTION = "temporal-flicker/temporal flicker", "dynamic-degree/dynamic degree"


@pytest.fixture
def write_videos(tmp_path):
    """Writes videos of noise: the louder, the more they flicker."""

    def write(folder, sizes=((16, 16), (16, 16), (24, 16)), fps=8, loud=1.0):
        for i, (height, width) in enumerate(sizes):
            noise = torch.rand(5, 3, height, width, generator=torch.Generator().manual_seed(i)) - 0.5
            write_video(tmp_path / folder / f"{i}.mp4", noise * loud * (1 + i) / 2, fps)
        (tmp_path / "prompts.txt").write_text("a cat\na dog\nan owl\n")
        return tmp_path / folder

    return write


def score(*folders, prompts=None, **settings):
    prompts = str(folders[0].parent / "prompts.txt") if folders else None
    return score_videos(ScoreConfig(folders, prompts=prompts, device="cpu", **settings))


def test_folders_are_compared_by_what_each_critic_says_of_every_video(write_videos, tmp_path):
    calm, loud = write_videos("calm", loud=0.2), write_videos("loud")
    rows = score(calm, loud, reward=("temporal-flicker", "dynamic-degree"), scores=tmp_path / "scores.jsonl")
    assert [(row.folder, row.dimension, row.videos) for row in rows] == [
        (str(folder), dimension, 3) for folder in (calm, loud) for dimension in (FLICKER, MOTION)
    ]
    assert rows[0].mean > rows[2].mean
    listed = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(row["video"], row["prompt"]) for row in listed[:2]] == [
        (str(calm / "0.mp4"), "a cat"),
        (str(calm / "1.mp4"), "a dog"),
    ]
    for row in listed:  # each at its own size and rate, whatever its neighbours'
        for name in ("temporal-flicker", "dynamic-degree"):
            alone = load_reward(name)(read_video(row["video"])[None], [row["prompt"]], 8.0).values.item()
            assert row["scores"][f"{name}/{name.replace('-', ' ')}"] == pytest.approx(alone, abs=1e-6)
    flicker = [row["scores"][FLICKER] for row in listed[:3]]
    assert (rows[0].mean, rows[0].lowest, rows[0].highest) == pytest.approx(
        (sum(flicker) / 3, min(flicker), max(flicker))
    )


def test_pairs_are_of_a_prompt_from_whatever_folder_and_by_the_weighted_sum(write_videos, tmp_path):
    calm, loud, out = write_videos("calm", loud=0.2), write_videos("loud"), tmp_path / "pairs.jsonl"
    both = {"reward": ("temporal-flicker", "dynamic-degree"), "out": out}
    score(calm, loud, weights={FLICKER: 1.0, MOTION: 0.0}, **both)
    assert [(pair.prompt, pair.winner.parent.name, pair.losers[0].parent.name) for pair in read_pairs(out)] == [
        (prompt, "calm", "loud") for prompt in ("a cat", "a dog", "an owl")
    ]
    pair = read_pairs(out)[0]
    assert set(pair.scores) == {FLICKER, MOTION}
    assert pair.margin == pytest.approx(pair.scores[FLICKER][0] - pair.scores[FLICKER][1], abs=1e-6)
    score(calm, loud, weights={FLICKER: -1.0}, **both)
    assert {pair.winner.parent.name for pair in read_pairs(out)} == {"loud"}


def test_the_size_and_rate_of_a_list_by_hand_are_the_files_own(write_videos, tmp_path, monkeypatch):
    seen = []

    def critic(videos, prompts, fps):
        seen.append((tuple(videos.shape), prompts, fps))
        return real(videos, prompts, fps)

    real = load_reward("dynamic-degree")
    critic.name, critic.dimensions = real.name, real.dimensions
    monkeypatch.setattr("besttake.commands.score.load_reward", lambda *_: critic)
    folder = write_videos("a", fps=12)
    row = {"prompt": "a cat", "videos": ["0.mp4", "1.mp4", "2.mp4"]}
    (folder / "samples.jsonl").write_text(json.dumps(row))
    score_videos(ScoreConfig(samples=folder / "samples.jsonl", device="cpu"))
    assert seen == [((2, 5, 3, 16, 16), ["a cat"] * 2, 12.0), ((1, 5, 3, 24, 16), ["a cat"], 12.0)]
    seen.clear()
    (folder / "samples.jsonl").write_text(json.dumps(row | {"size": [8, 8], "fps": 30}))
    score_videos(ScoreConfig(samples=folder / "samples.jsonl", device="cpu"))
    assert seen == [((3, 5, 3, 8, 8), ["a cat"] * 3, 30)]


def test_several_critics_have_a_margin_together(write_videos):
    config = ScoreConfig(
        (write_videos("a"),),
        prompts="prompts",
        reward=("temporal-flicker", "dynamic-degree"),
        weights={FLICKER: 1.0},
        calibrate=3,
    )
    (config.folders[0] / "prompts.txt").write_text("a cat")
    both = calibrate_videos(ScoreConfig(**{**vars(config), "prompts": None}))
    alone = {**vars(config), "prompts": None, "reward": ("temporal-flicker",), "weights": {}}
    assert both.margin == pytest.approx(calibrate_videos(ScoreConfig(**alone)).margin, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either folders of videos or --samples FILE"),
        ({"samples": "t.jsonl", "folders": ("a",)}, "give either folders"),
        ({"samples": "t.jsonl", "prompts": "p.txt"}, "has its own prompts"),
        ({"folders": ("a", "a")}, "folders is a, a; expected each folder once"),
        ({"folders": ("a",), "reward": ("world", "world")}, "expected each critic once"),
        ({"folders": ("a",), "reward": ("world", "heldout"), "path": "x"}, "path is x, but there are 2 critics"),
        (
            {"folders": ("a",), "reward": ("world", "heldout"), "out": "x"},
            "weights is empty, but the critics have different scales",
        ),
        ({"folders": ("a",), "reward": ("world", "heldout"), "calibrate": 3}, "--weights 'world/DIMENSION' 1"),
        ({"folders": ("a",), "margin": -1.0}, "^margin is -1.0; expected"),
        ({"folders": ("a",), "calibrate": 1}, "^calibrate is 1; expected 2 or more, or 0"),
        ({"folders": ("a",), "grain": -1.0}, "^grain is -1.0; expected"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScoreConfig(**settings)


def test_pairs_of_prompts_with_one_video_each_are_refused_before_any_is_scored(write_videos, tmp_path, monkeypatch):
    monkeypatch.setattr("besttake.commands.score.load_reward", None)
    with pytest.raises(ValueError, match="no prompt has two videos to pair"):
        score(write_videos("a"), out=tmp_path / "pairs.jsonl")


def test_the_former_flag_of_samples_is_accepted(caplog):
    assert from_flags(ScoreConfig, ["--takes", "t.jsonl"], "besttake score").samples == Path("t.jsonl")
    assert "--takes was renamed to --samples" in caplog.text
    config = from_flags(AgreementConfig, ["--benchmark", "v.jsonl", "--draws", "5"], "besttake score")
    assert config.n_resamples == 5
    assert "--draws was renamed to --n-resamples" in caplog.text
