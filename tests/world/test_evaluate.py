"""What a finished run is measured by: the same with one process or several, and of what it was trained on."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from besttake.data.prompts import read_prompts
from besttake.data.video import read_video, write_video
from besttake.evaluation.before_after import EvaluateConfig
from besttake.evaluation.held_out import EvaluationSet
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig
from besttake.report.folder import read_run
from besttake.runtime.configuration import write_config
from besttake.runtime.distributed import EVALUATION_PARALLEL, init_processes
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import TrainConfig
from besttake.world.evaluate import evaluate, is_world_size_and_grammar, p_values_of
from tests.processes import launch, results


@pytest.fixture
def run(tmp_path, model_folder):
    """The folder of a run on a random model, whose weights have moved."""
    return moved(tmp_path / "run", str(model_folder("tiny-cogvideox")))


def moved(folder, source):
    policy = Policy(load_model(source), PolicyConfig(rank=2))
    for weight in policy.trainable.values():
        weight.data += 0.02
    policy.save(folder / "adapter")
    write_config(TrainConfig(model=source), folder / "config.yaml")
    return folder


def measured(run, config, chosen):
    init_processes(EVALUATION_PARALLEL, "cpu")
    return evaluate(run, config, chosen, {})


def contents(run):
    names = ("summary.json", "evaluation/changes.json", "evaluation/values.csv", "evaluation/prompts.json")
    clips = sorted(path.relative_to(run) for path in (run / "evaluation").glob("*/*.mp4"))
    return {str(name): (run / name).read_bytes() for name in (*names, *clips)}


def test_two_processes_find_what_one_finds_to_the_bit(run, tmp_path):
    """Of three batches one process has two; the critic is a network, whose last bits depend on its batch."""
    clips = [tmp_path / f"{i}.mp4" for i in range(5)]
    for i, clip in enumerate(clips):
        write_video(clip, torch.full((6, 3, 16, 16), i / 5), 8)
    config = EvaluateConfig(shown=5, rewards=("world",), rollout=RolloutConfig(steps=1, batch=2))
    chosen = EvaluationSet("mine", [f"a red ball {letter}" for letter in "abcde"], clips)
    alone = measured(run, config, chosen)
    expected = contents(run)
    assert len([name for name in expected if name.endswith(".mp4")]) == 15
    assert results(launch(2, measured, run, config, chosen)) == [alone, alone]
    assert contents(run) == expected


def one_without_a_critic(run, config, chosen):
    return measured(run, replace(config, rewards=("nobody",)) if os.environ["RANK"] == "1" else config, chosen)


def test_what_fails_on_one_process_is_raised_on_all(run):
    config = EvaluateConfig(rollout=RolloutConfig(steps=1))
    well, failed = launch(2, one_without_a_critic, run, config, EvaluationSet("mine", ["a", "b"]))
    assert "unknown critic 'nobody'" in failed.raised
    assert "OtherProcessError: process 1 failed" in well.raised


def test_a_users_own_clips_are_the_real_ones(run, tmp_path):
    clip = tmp_path / "clip.mp4"
    write_video(clip, torch.full((6, 3, 16, 16), 0.5), 8)
    config = EvaluateConfig(rewards=("temporal-flicker",), rollout=RolloutConfig(steps=1))
    chosen = EvaluationSet("mine", ["a red ball", "a blue ball"], [clip, clip], trained_on=2)
    summary = evaluate(run, config, chosen, {"minutes": 1})
    assert list(summary) == ["before", "after", "real", "about"]
    assert summary["real"]["reward/temporal-flicker/temporal flicker"] > 0.9
    said = {"prompts": "mine", "held_out": False, "trained_on": 2, "clips": 2, "seed": 777, "minutes": 1}
    assert summary["about"] == said
    real = read_video(run / "evaluation" / "real" / "01.mp4")
    assert len(real) == 4  # as many frames as samples have
    lines = (run / "evaluation" / "values.csv").read_text().splitlines()
    assert lines[0] == "number,prompt,clip,reward/temporal-flicker/temporal flicker"
    assert [line.split(",")[:3] for line in lines[1:4]] == [["0", "a red ball", c] for c in ("before", "after", "real")]
    clip.unlink()
    assert "real" not in evaluate(run, config, chosen, {})


def test_prompts_alone_have_no_real_clips_and_an_old_evaluation_stays_until_the_new_one_is_done(run):
    config = EvaluateConfig(rewards=("temporal-flicker",), shown=1, rollout=RolloutConfig(steps=1))
    chosen = EvaluationSet("mine", ["a red ball", "a blue ball"])
    summary = evaluate(run, config, chosen, {})
    assert list(summary) == ["before", "after", "about"]
    assert "held_out" not in summary["about"]  # nobody has counted
    assert read_run(run).q_values == {"reward/temporal-flicker/temporal flicker": 1.0}
    before = contents(run)
    with pytest.raises(ValueError, match="empty"):
        evaluate(run, config, replace(chosen, prompts=["a red ball", " "]), {})
    assert contents(run) == before
    evaluate(run, config, replace(chosen, prompts=["a green ball"]), {})
    assert json.loads((run / "evaluation" / "prompts.json").read_text()) == ["a green ball"]


def test_only_clips_of_the_worlds_size_and_prompts_of_its_grammar_are_measured_as_its_own():
    prompts = read_prompts("world-test")[:2]
    assert is_world_size_and_grammar((16, 32, 32), prompts)
    assert is_world_size_and_grammar((17, 32, 32), prompts)
    assert not is_world_size_and_grammar((8, 32, 32), prompts)
    assert not is_world_size_and_grammar((16, 32, 48), prompts)
    assert not is_world_size_and_grammar((16, 32, 32), [*prompts, "a cat plays piano"])


def test_a_change_is_tested_towards_where_it_should_go_and_clips_that_a_critic_left_out_are_left_out():
    low, high = np.zeros(8), np.ones(8)
    gap = np.array([np.nan, *np.ones(7)])
    found = p_values_of(
        {"share/melt": low, "odd": low, "a": low}, {"share/melt": high, "odd": high, "a": gap}, {}, None
    )
    assert found == {"share/melt": 2 / 2**8}  # nothing says where the others should go
    found = p_values_of(
        {"object_area": low, "reward/x/y": low}, {"object_area": high, "reward/x/y": gap}, {"object_area": 0.5}, None
    )
    assert found == {"object_area": 1.0, "reward/x/y": 2 / 2**7}  # as far from real clips as before
