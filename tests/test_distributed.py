"""Several processes on a CPU, over gloo: they are as one, and where one fails none waits for ever."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from besttake.algorithms import onlinevpo, realdpo
from besttake.distributed import ParallelConfig
from besttake.monitor import MonitorConfig
from besttake.policy import PolicyConfig
from besttake.rewards.composite import RewardConfig
from besttake.rollout import RolloutConfig
from besttake.run import OptimConfig
from tests.processes import launch, results

LAYOUTS = [(2, 1), (2, 2), (4, 2)]
"""Processes, and how many of them hold one copy of the weights: replicas, FSDP2, HSDP."""


@pytest.fixture(scope="module")
def common(model_folder, material):
    return {
        "model": str(model_folder("tiny-cogvideox")),
        "steps": 4,
        "save_every": 3,
        "beta": 50.0,
        # so short a gradient that AdamW's epsilon is far above it: a step is in proportion to it, not of one size
        # whatever it is, which for a gradient of 0 but for rounding would be a step in any direction
        "optim": OptimConfig(lr=0.5, clip=1e-8, warmup=0, accumulate=2),
        "monitor": MonitorConfig(2, str(material / "prompts.txt"), 3, ("dynamic-degree",), 2, RolloutConfig(steps=1)),
        "rollout": RolloutConfig(steps=2, batch=1),
    }


@pytest.fixture(scope="module")
def online(common, material, tmp_path_factory):
    """OnlineVPO on a LoRA, by the number of processes and the size of a shard: its folder, and its takes."""
    made = {}

    def trained(size, shard):
        if (size, shard) not in made:
            out = tmp_path_factory.mktemp("online")
            config = onlinevpo.Config(
                **common,
                out=out,
                data=str(material / "prompts.txt"),
                policy=PolicyConfig(rank=2, average=0.5, clips_at_once=1),
                prompts_per_step=2,
                candidates=2,
                refresh_every=2,
                reward=RewardConfig("temporal-flicker", normalise="batch"),
                parallel=ParallelConfig(shard),
            )
            made[size, shard] = out, results(launch(size, train_online, config))
        return made[size, shard]

    return trained


def train_online(config):
    """Every rollout's latents and votes, as this process saw them."""
    seen, pair = [], onlinevpo.best_against_worst

    def watched(takes, scores, margin):
        seen.append((takes.latents.tolist(), scores.votes.tolist(), takes.prompts))
        return pair(takes, scores, margin)

    onlinevpo.best_against_worst = watched
    onlinevpo.train(config)
    return seen


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "minutes"} for line in lines]


def adapter(folder):
    return load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(("size", "shard"), LAYOUTS)
def test_takes_and_votes_are_those_of_one_process_to_the_bit(online, size, shard):
    (alone,), together = online(1, 1)[1], online(size, shard)[1]
    assert all(seen == together[0] for seen in together)
    assert together[0][0] == alone[0]  # later ones come from weights that differ in their last bits


@pytest.mark.parametrize(("size", "shard"), LAYOUTS)
def test_the_curves_are_those_of_one_process(online, size, shard):
    expected, found = rows(online(1, 1)[0]), rows(online(size, shard)[0])
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("size", "shard"), LAYOUTS)
def test_the_adapter_is_that_of_one_process(online, size, shard):
    expected, found = adapter(online(1, 1)[0]), adapter(online(size, shard)[0])
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_all_samples_are_written_once(online):
    for step in (0, 2, 4):
        samples = online(4, 2)[0] / "samples" / f"step-{step:08d}"
        assert sorted(path.name for path in samples.iterdir()) == ["00.mp4", "01.mp4"]


@pytest.fixture(scope="module")
def full(common, material, tmp_path_factory):
    """RealDPO on all weights, stopped in the middle of an update or not at all: its config."""
    made = {}

    def trained(size, shard, steps):
        if (size, shard, steps) not in made:
            config = realdpo.Config(
                **common | {"steps": steps},
                out=tmp_path_factory.mktemp("full"),
                data=str(material / "clips"),
                policy=PolicyConfig("full", average=0.5),
                clips_per_step=2,
                negatives=2,
                renew_every=2,
                reference_every=1,
                parallel=ParallelConfig(shard),
            )
            results(launch(size, train_full, config))
            made[size, shard, steps] = config
        return made[size, shard, steps]

    return trained


def train_full(config):
    realdpo.train(config)


def whole(folder):
    return load_file(folder / "adapter" / "transformer" / "diffusion_pytorch_model.safetensors")


def is_the_run_of_one_process(found, expected):
    for row, wanted in zip(rows(found.out), rows(expected.out), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    weights, wanted = whole(found.out), whole(expected.out)
    assert weights.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_sharded_weights_are_those_of_one_process(full):
    is_the_run_of_one_process(full(2, 2, 4), full(1, 1, 4))


@pytest.mark.parametrize(("size", "shard"), [(1, 1), (2, 1), (2, 2)])
def test_a_sharded_checkpoint_is_resumed_by_another_number_of_processes(full, tmp_path, size, shard):
    cut = full(4, 2, 3)
    (saved,) = (cut.out / "checkpoints").iterdir()
    assert len([path for path in saved.iterdir() if path.suffix == ".safetensors"]) == 4
    shutil.copytree(cut.out, tmp_path / "again")
    again = replace(cut, steps=4, out=tmp_path / "again", parallel=ParallelConfig(shard))
    results(launch(size, train_full, again))
    is_the_run_of_one_process(again, full(1, 1, 4))
