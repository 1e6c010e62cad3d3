"""Callbacks of every algorithm's run; tests/training/test_run.py has the run itself."""

from dataclasses import replace

import pytest

from besttake.algorithms import algorithms
from besttake.data.pairs import PreferencePair, write_pairs
from besttake.models.policy import PolicyConfig
from besttake.rewards.panel import RewardConfig
from besttake.sampling.rollout import RolloutConfig
from besttake.training.callbacks import callbacks
from besttake.training.validation import ValidationConfig


@pytest.fixture
def config(tmp_path, model_folder, material):
    """A small config of an algorithm."""

    def make(algorithm, **settings):
        clips = sorted((material / "clips").glob("*.mp4"))[:2]
        pair = PreferencePair("a red ball", clips[0], [clips[1]], 1.0, "offline", {}, "x", 0)
        write_pairs(tmp_path / "pairs.jsonl", [pair])
        data = {"onlinevpo": material / "prompts.txt", "offline_dpo": tmp_path / "pairs.jsonl"}
        own = {"onlinevpo": {"candidates": 2, "prompts_per_step": 1, "reward": RewardConfig("temporal-flicker")}}
        validation = ValidationConfig(every=2, count=1, samples=0, rewards=("dynamic-degree",))
        return algorithms()[algorithm].Config(
            model=str(model_folder("tiny-cogvideox")),
            data=str(data.get(algorithm, material / "clips")),
            out=tmp_path / "run",
            policy=PolicyConfig(rank=2),
            rollout=RolloutConfig(steps=1),
            validation=validation,
            **{"steps": 2, **own.get(algorithm, {}), **settings},
        )

    return make


@pytest.mark.parametrize("algorithm", ["onlinevpo", "realdpo", "sft", "offline_dpo"])
def test_functions_are_called_after_every_step_and_validation_pass(config, algorithm):
    steps, passes = [], []

    def on_step(run, metrics):
        steps.append((run.step, "train/loss" in metrics))

    def on_validation(run, metrics):
        passes.append((run.step, list(metrics)))

    with callbacks(on_step, on_validation):
        algorithms()[algorithm].train(config(algorithm))
    assert steps == [(1, True), (2, True)]
    assert passes == [(0, ["eval/dynamic-degree/dynamic degree"]), (2, ["eval/dynamic-degree/dynamic degree"])]


def test_an_error_of_a_callback_stops_the_run_with_a_checkpoint(config):
    def fail(run, metrics):
        raise RuntimeError("enough")

    train, calm = algorithms()["sft"].train, replace(config("sft"), validation=ValidationConfig(every=0))
    with callbacks(on_step=fail), pytest.raises(RuntimeError, match="enough") as stopped:
        train(calm)
    assert "the same command resumes from step 1" in "".join(stopped.value.__notes__)
    assert train(calm).step == 2, "without callbacks, from its checkpoint"
