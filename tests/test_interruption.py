"""Signals at every moment of a run, real ones: what was done is saved, and the run that goes on is the one never cut."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from besttake import checkpoint, cli, interruption, monitor, policy, run
from besttake.algorithms import onlinevpo, sft
from besttake.configuration import to_yaml
from besttake.monitor import MonitorConfig
from besttake.policy import Copy, Policy, PolicyConfig, Twin
from besttake.rewards.composite import Panel, RewardConfig
from besttake.rollout import RolloutConfig, RolloutOverrides
from besttake.run import OptimConfig, Run
from tests.processes import launch, results


@pytest.fixture(scope="module")
def config(model_folder, material, tmp_path_factory):
    """Four steps, two to an update, with everything a checkpoint keeps; nothing is saved before the end."""
    return onlinevpo.Config(
        model=str(model_folder("tiny-cogvideox")),
        data=str(material / "prompts.txt"),
        out=tmp_path_factory.mktemp("interruption") / "run",
        steps=4,
        save_every=99,
        prompts_per_step=1,
        candidates=2,
        refresh_every=1,
        policy=PolicyConfig(rank=2, average=0.5),
        optim=OptimConfig(lr=1e-2, warmup=2, accumulate=2),
        monitor=MonitorConfig(2, str(material / "prompts.txt"), 1, ("dynamic-degree",), 1, RolloutOverrides(steps=1)),
        rollout=RolloutConfig(steps=1),
        reward=RewardConfig("temporal-flicker", normalise="batch"),
    )


@pytest.fixture(scope="module")
def whole(config):
    return onlinevpo.train(config).folder


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "minutes"} for line in lines]


def adapter(folder):
    return load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")


def saved(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def is_the_run_that_was_not_cut(cut, whole):
    assert rows(cut) == rows(whole)
    assert all(torch.equal(weight, adapter(whole)[name]) for name, weight in adapter(cut).items())


MOMENTS = {
    "sampling": (onlinevpo, "generate", 3, 2),
    "scoring": (Panel, "__call__", 5, 3),  # the first is of noise
    "backward": (run, "backward", 2, 1),
    "clipping": (torch.nn.utils, "clip_grad_norm_", 1, 1),
    "updating": (torch.optim.AdamW, "step", 1, 2),
    "averaging": (Policy, "update_average", 1, 2),
    "refreshing": (Twin, "refresh", 1, 2),
    "a look": (monitor, "generate", 2, 2),
    "writing a clip": (monitor, "write_video", 2, 2),
    "writing": (checkpoint, "save_file", 1, 4),
    "writing the adapter": (Policy, "save", 1, 4),
    "evaluating": (cli, "_report", 1, 4),
}
"""What is called then, which of its calls a signal comes in, and the step that is saved."""


def strike(where, name, call, act):
    """Have `act` done at a call of a function, between its first and its last line where it is a method."""
    was, calls = getattr(where, name), []

    def struck(*arguments, **named):
        calls.append(1)
        if len(calls) == call:
            act()
        return was(*arguments, **named)

    setattr(where, name, struck)


def train(config, moment, act):
    """`besttake train` in this process, which ends as that ends it."""
    where, name, call, _ = MOMENTS[moment]
    if moment != "evaluating":
        cli._report = lambda *_: None
    strike(where, name, call, act)
    recipe = config.out.parent / f"{config.out.name}-{os.environ['RANK']}.yaml"
    recipe.write_text(to_yaml(config, algorithm=type(config).__module__.rpartition(".")[2]))
    sys.exit(cli.main(["train", str(recipe)]))


def told_to_stop(config, moment, number):
    train(config, moment, lambda: os.kill(os.getpid(), number))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_costs_no_more_than_the_step_under_way(config, whole, moment, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, told_to_stop, cut, moment, signal.SIGTERM)
    assert ending.code == 128 + signal.SIGTERM, ending.said
    assert saved(cut.out) == [MOMENTS[moment][-1]]
    said = ending.said.replace("\n", "")
    assert "stopped by SIGTERM: " in said
    assert ("is trained" if moment == "evaluating" else f"goes on from step {MOMENTS[moment][-1]}, in ") in said
    onlinevpo.train(cut)
    is_the_run_that_was_not_cut(cut.out, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_the_exit_code_tells_the_signal(config, number, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, told_to_stop, cut, "sampling", number)
    assert ending.code == 128 + number, ending.said
    assert saved(cut.out) == [2]


def test_before_the_first_step_there_is_nothing_to_save(config, tmp_path):
    cut = replace(config, out=tmp_path / "cut", monitor=MonitorConfig(every=0))
    (ending,) = launch(1, told_to_stop, cut, "backward", signal.SIGTERM)
    assert saved(cut.out) == [1]
    MOMENTS["the first"] = (onlinevpo, "generate", 1, 0)
    (ending,) = launch(1, told_to_stop, replace(cut, out=tmp_path / "none"), "the first", signal.SIGTERM)
    assert ending.code == 128 + signal.SIGTERM
    assert "no step is saved" in ending.said
    assert saved(tmp_path / "none") == []


def lock_up():
    """Wait for ever where no handler of Python's comes to be called, as in a kernel or for another process."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def stop_soon_and_lock_up():
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    lock_up()


def told_and_stuck(config, moment):
    train(config, moment, stop_soon_and_lock_up)


@pytest.mark.parametrize("moment", ["backward", "a look"])
def test_a_main_thread_that_is_stuck_is_not_waited_for(config, whole, moment, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, told_and_stuck, cut, moment)
    assert ending.code == 128 + signal.SIGTERM, ending.said
    assert saved(cut.out) == [MOMENTS[moment][-1]]
    onlinevpo.train(cut)
    is_the_run_that_was_not_cut(cut.out, whole)
