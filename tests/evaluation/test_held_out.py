"""What a run is measured on: chosen before its first step, kept out of training where there is enough, and said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from besttake.algorithms import onlinevpo, sft
from besttake.commands.cli import read_recipe
from besttake.commands.generate import ClipsConfig, write_clips
from besttake.data.pairs import PreferencePair
from besttake.data.prompts import read_prompts
from besttake.data.real import RealClip
from besttake.data.video import write_video
from besttake.evaluation.before_after import EvaluateConfig
from besttake.evaluation.held_out import (
    EvaluationSet,
    choose_evaluation_set,
    evaluation_set_of_run,
    read_set,
    without_held_out,
    write_set,
)
from besttake.models.policy import PolicyConfig
from besttake.runtime.embedded import embedded_family
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import Run
from besttake.training.validation import ValidationConfig
from besttake.types import Prompt

SIZE = (4, 16, 16)
MANY = [f"a red ball number {i}" for i in range(100)]


def chosen(model, items, listed=None, count=128, **more):
    return choose_evaluation_set(listed, "mine.txt", items, count, 777, model, SIZE, **more)


def test_a_tenth_of_many_prompts_is_held_out(cogvideox):
    found = chosen(cogvideox, MANY)
    assert len(found.prompts) == 10
    assert (found.source, found.trained_on, found.held_out) == ("mine.txt", 0, found.prompts)
    assert found.prompts == chosen(cogvideox, MANY).prompts
    assert found.prompts != MANY[:10]
    left = without_held_out([*MANY, found.prompts[0]], found.held_out)
    assert left == [prompt for prompt in MANY if prompt not in found.prompts]
    assert len(chosen(cogvideox, MANY, count=9).prompts) == 9


def test_of_few_none_is_held_out_and_it_is_said_that_they_are_trained_on(cogvideox):
    found = chosen(cogvideox, [*MANY[:79], MANY[0]])
    assert sorted(found.prompts) == sorted(MANY[:79])
    assert (found.trained_on, found.held_out) == (79, [])
    assert chosen(cogvideox, MANY, spare=False).held_out == []
    assert chosen(cogvideox, MANY[:30], count=5).trained_on == 5


def test_prompts_of_a_file_hold_nothing_out_and_are_compared_with_what_is_trained_on(cogvideox, tmp_path):
    file = tmp_path / "test.txt"
    file.write_text(f"{MANY[3]}\na blue ball\na blue ball\na green ball\n")
    found = chosen(cogvideox, MANY, listed=str(file))
    assert found == EvaluationSet(str(file), [MANY[3], "a blue ball", "a green ball"], trained_on=1)
    assert len(chosen(cogvideox, MANY, listed=str(file), count=2).prompts) == 2
    file.write_text("a blue ball\na blue ball\n")
    with pytest.raises(ValueError, match="a single prompt; expected 2 or more different"):
        chosen(cogvideox, MANY, listed=str(file))


def test_clips_come_with_their_captions_and_what_cannot_be_read_is_left_to_training(cogvideox, tmp_path):
    long, short = tmp_path / "long.mp4", tmp_path / "short.mp4"
    for file, frames in ((long, 6), (short, 2)):
        write_video(file, torch.zeros(frames, 3, 16, 16), 8)
    clips = [RealClip(long, "a ball"), RealClip(short, "a box"), RealClip(long, "a ball " * 300)]
    found = chosen(cogvideox, clips)
    assert (found.prompts, found.clips, found.trained_on) == (["a ball"], [long], 1)
    cogvideox.needs_first_frame = cogvideox.accepts_first_frame = True
    assert chosen(cogvideox, clips).prompts[0].first_frame == long
    pair = PreferencePair("a ball", long, [short])
    assert chosen(cogvideox, [pair]).prompts[0].first_frame == long
    assert chosen(cogvideox, [pair]).clips == []


def test_what_was_chosen_is_written_into_the_folder(tmp_path):
    frame, clip = tmp_path / "frame.png", tmp_path / "clip.mp4"
    found = EvaluationSet(
        "mine", [Prompt("a", first_frame=frame), Prompt("b", source=clip)], [clip, clip], 0, ["a", "b"]
    )
    write_set(tmp_path, found)
    again = read_set(tmp_path)
    assert again == found
    assert [(p.first_frame, p.source) for p in again.prompts] == [(frame, None), (None, clip)]
    assert read_set(tmp_path / "elsewhere") is None
    (tmp_path / "evaluation_set.json").write_text("{}")
    with pytest.raises(ValueError, match=r"evaluation_set\.json is broken"):
        read_set(tmp_path)


def test_a_report_measures_on_what_was_chosen_unless_set_otherwise(tmp_path):
    with pytest.raises(ValueError, match="has no evaluation set; give prompts with --prompts"):
        evaluation_set_of_run(tmp_path, None, "mine.txt", 9)
    assert evaluation_set_of_run(tmp_path, None, "world-train", 9).source == "world-test"
    file = tmp_path / "test.txt"
    file.write_text("a\nz\n")
    write_set(tmp_path, EvaluationSet("mine.txt", ["a", "b", "c"], [Path("x")] * 3, 3))
    assert evaluation_set_of_run(tmp_path, None, "mine.txt", 2) == EvaluationSet(
        "mine.txt", ["a", "b"], [Path("x").resolve()] * 2, 2
    )
    assert evaluation_set_of_run(tmp_path, str(file), "mine.txt", 9) == EvaluationSet(str(file), ["a", "z"])


@pytest.mark.parametrize(
    ("data", "family"),
    [
        ("world", "world"),
        ("world-train", "world"),
        ("world-test", "world"),
        ("everyday-train", "everyday"),
        ("a.txt", None),
    ],
)
def test_embedded_data_have_lists_of_their_own(data, family):
    assert embedded_family(data) == family


def test_data_are_known_by_what_they_hold(tmp_path):
    assert embedded_family("pairs.jsonl", set(read_prompts("world-train")[5:9])) == "world"
    assert embedded_family("pairs.jsonl", {read_prompts("world-train")[5], "a cat plays piano"}) is None
    assert embedded_family(str(write_clips(ClipsConfig(tmp_path / "clips", count=1)))) == "world"


@pytest.fixture
def config(model_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("".join(f"{prompt}\n" for prompt in MANY))
    return onlinevpo.Config(
        model=str(model_folder("tiny-cogvideox")),
        data=str(tmp_path / "mine.txt"),
        out=tmp_path / "run",
        steps=1,
        policy=PolicyConfig(rank=2),
        validation=ValidationConfig(every=0),
    )


def test_a_run_keeps_what_it_holds_out_when_it_goes_on(config):
    run = Run(config, MANY)
    assert len(run.data) == 90
    run.save()
    named = replace(config, evaluation=EvaluateConfig(str(config.data), count=2))
    again = Run(named, MANY)
    assert again.data == run.data
    assert (again.evaluation_set.source, again.evaluation_set.held_out) == (
        str(config.data),
        run.evaluation_set.held_out,
    )
    assert Run(config, MANY).data == run.data
    (config.out / "evaluation_set.json").unlink()  # as of a run that began with an earlier version
    assert Run(config, MANY).data == MANY


def test_a_run_is_validated_and_measured_as_it_samples_and_on_its_own_prompts(config):
    rollout = RolloutConfig(steps=2, frames=4, height=32, width=16, batch=3)
    validated = replace(config, rollout=rollout, validation=ValidationConfig(count=3))
    run = Run(validated, MANY)
    assert run.validator.prompts == run.evaluation_set.prompts[:3]
    assert [reward.name for reward in run.validator.rewards] == [
        "dynamic-degree",
        "temporal-flicker",
        "motion-smoothness",
    ]
    assert run.validator.rollout == rollout
    assert run.config.evaluation_config.rollout == rollout
    named = replace(validated, out=config.out / "named", evaluation=EvaluateConfig("world-test"))
    run = Run(named, MANY)
    assert run.data == MANY
    assert run.evaluation_set.source == "world-test"
    assert set(run.validator.prompts) < set(MANY)


def test_captions_of_clips_that_are_held_out_are_not_trained_on(config, tmp_path):
    clip = tmp_path / "clip.mp4"
    write_video(clip, torch.zeros(6, 3, 16, 16), 8)
    clips = [RealClip(clip, text) for text in MANY]
    run = Run(
        sft.Config(**{f: getattr(config, f) for f in ("model", "data", "out", "steps", "policy", "validation")}), clips
    )
    assert len(run.data) == 90
    assert run.evaluation_set.clips == [clip] * 10


@pytest.mark.parametrize(
    ("recipe", "family"),
    [("onlinevpo-tiny", "world"), ("sft-tiny", "world"), ("realdpo-tiny", "world"), ("onlinevpo-wan-1.3b", "everyday")],
)
def test_shipped_recipes_are_validated_and_measured_as_before(recipe, family, cogvideox):
    config = read_recipe(recipe)
    assert embedded_family(config.data) == family
    assert config.evaluation.prompts is None
    steps = {"onlinevpo-wan-1.3b": (25, 50), "sft-tiny": (None, None)}.get(recipe, (16, 16))
    assert (config.validation_config.rollout.steps, config.evaluation_config.rollout.steps) == steps
    assert config.evaluation_config.rollout.evaluations is None
    assert config.validation.prompt_source(family) == f"{family}-validation"
    assert read_recipe("onlinevpo-tiny").validation.critics("world") == ("world", "heldout", "dynamic-degree")
