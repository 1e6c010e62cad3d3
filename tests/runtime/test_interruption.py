"""Real signals at every moment of a run: what was done is saved, and the run that goes on is the one never cut."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from besttake.algorithms import onlinevpo
from besttake.commands import cli
from besttake.models.policy import AdapterReference, Policy, PolicyConfig
from besttake.rewards.panel import Panel, RewardConfig
from besttake.runtime import interruption
from besttake.runtime.configuration import to_yaml
from besttake.runtime.distributed import ParallelConfig
from besttake.sampling.rollout import RolloutConfig, RolloutOverrides
from besttake.training import checkpoint_files, optimization, run, validation
from besttake.training.checkpointer import Checkpointer
from besttake.training.metrics import MetricsLog
from besttake.training.run import OptimConfig
from besttake.training.validation import ValidationConfig
from tests.processes import launch
from tests.runs import adapter, rows


@pytest.fixture(scope="module")
def config(model_folder, material, tmp_path_factory):
    """Four steps, two to an update, with everything a checkpoint keeps; nothing is saved before the end."""
    return onlinevpo.Config(
        model=str(model_folder("tiny-cogvideox", layers=1)),
        data=str(material / "prompts.txt"),
        out=tmp_path_factory.mktemp("interruption") / "run",
        steps=4,
        save_every=99,
        prompts_per_step=1,
        candidates=2,
        refresh_every=1,
        policy=PolicyConfig(rank=2, ema_decay=0.5),
        optim=OptimConfig(lr=1e-2, warmup_steps=2, gradient_accumulation_steps=2),
        validation=ValidationConfig(
            2, str(material / "prompts.txt"), 1, ("dynamic-degree",), 1, RolloutOverrides(steps=1)
        ),
        rollout=RolloutConfig(steps=1),
        reward=RewardConfig("temporal-flicker", normalise="batch"),
    )


@pytest.fixture(scope="module")
def whole(config):
    return onlinevpo.train(config).folder


def saved(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def is_the_run_that_was_not_cut(cut, whole):
    assert rows(cut) == rows(whole)
    assert all(torch.equal(weight, adapter(whole)[name]) for name, weight in adapter(cut).items())


MOMENTS = {
    "sampling": (onlinevpo, "generate", 3, 2),
    "scoring": (Panel, "__call__", 5, 3),  # the first is of noise
    "backward": (optimization, "backward", 2, 1),
    "clipping": (torch.nn.utils, "clip_grad_norm_", 1, 1),
    "updating": (torch.optim.AdamW, "step", 1, 2),
    "averaging": (Policy, "update_ema", 1, 2),
    "refreshing": (AdapterReference, "refresh", 1, 2),
    "a validation pass": (validation, "generate", 2, 2),
    "writing a clip": (validation, "write_video", 2, 2),
    "writing": (checkpoint_files, "save_file", 1, 4),
    "writing the adapter": (Policy, "save", 1, 4),
    "evaluating": (cli, "_report", 1, 4),
}
"""What is called then, which of its calls a signal comes in, and the step that is saved."""
STRIKES = MOMENTS | {
    "the first sampling": (onlinevpo, "generate", 1, 0),
    "logging": (MetricsLog, "write", 3, 2),  # of the second step; the first two are of validation and the first step
    "comparing": (Checkpointer, "compare_weights", 2, 2),  # the first is at the start
}


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
    where, name, call, _ = STRIKES[moment]
    if moment != "evaluating":
        cli._report = lambda *_: None
    strike(where, name, call, act)
    recipe = config.out.parent / f"{config.out.name}-{os.environ['RANK']}.yaml"
    recipe.write_text(to_yaml(config, algorithm=type(config).__module__.rpartition(".")[2]))
    sys.exit(cli.main(["train", str(recipe)]))


def signalled_to_stop(config, moment, number):
    train(config, moment, lambda: os.kill(os.getpid(), number))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_costs_no_more_than_the_step_under_way(config, whole, moment, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, signalled_to_stop, cut, moment, signal.SIGTERM)
    assert ending.code == 128 + signal.SIGTERM, ending.said
    assert saved(cut.out) == [MOMENTS[moment][-1]]
    said = ending.said.replace("\n", "")
    assert "stopped by SIGTERM: " in said
    assert ("is complete" if moment == "evaluating" else f"resumes from step {MOMENTS[moment][-1]}, in ") in said
    onlinevpo.train(cut)
    is_the_run_that_was_not_cut(cut.out, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_the_exit_code_is_the_signals(config, number, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, signalled_to_stop, cut, "sampling", number)
    assert ending.code == 128 + number, ending.said
    assert saved(cut.out) == [2]


def test_before_the_first_step_there_is_nothing_to_save(config, tmp_path):
    cut = replace(config, out=tmp_path / "cut", validation=ValidationConfig(every=0))
    (ending,) = launch(1, signalled_to_stop, cut, "backward", signal.SIGTERM)
    assert saved(cut.out) == [1]
    (ending,) = launch(1, signalled_to_stop, replace(cut, out=tmp_path / "none"), "the first sampling", signal.SIGTERM)
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


def signalled_and_stuck(config, moment):
    train(config, moment, stop_soon_and_lock_up)


@pytest.mark.parametrize("moment", ["backward", "a validation pass"])
def test_a_main_thread_that_is_stuck_is_not_waited_for(config, whole, moment, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, signalled_and_stuck, cut, moment)
    assert ending.code == 128 + signal.SIGTERM, ending.said
    assert saved(cut.out) == [MOMENTS[moment][-1]]
    onlinevpo.train(cut)
    is_the_run_that_was_not_cut(cut.out, whole)


def signalled_twice(config, moment, apart):
    def twice():
        for seconds in (0.2, 0.2 + apart):
            threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        lock_up()

    train(config, moment, twice)


def test_a_signal_that_a_launcher_passes_on_is_no_second_one(config, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, signalled_twice, cut, "backward", 0.01)
    assert ending.code == 128 + signal.SIGTERM
    assert "at once" not in ending.said
    assert saved(cut.out) == [1]


def unheard(config, moment, number, gone):
    """A process that gets a signal to stop when its standard error is no more, or when nobody reads it."""
    interruption.EXIT_SECONDS = 1.0

    def act():
        reads, writes = os.pipe()
        if gone:
            os.close(reads)
        else:
            os.set_blocking(writes, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(writes, b"x")
            os.set_blocking(writes, True)
        os.dup2(writes, 2)
        os.kill(os.getpid(), number)

    train(config, moment, act)


@pytest.mark.parametrize("gone", [True, False])
def test_a_terminal_that_is_gone_or_stopped_keeps_nothing(config, gone, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, unheard, cut, "sampling", signal.SIGHUP, gone)
    assert ending.code == 128 + signal.SIGHUP
    assert saved(cut.out) == [2]


def test_a_second_signal_ends_it_at_once(config, tmp_path):
    cut, began = replace(config, out=tmp_path / "cut"), time.monotonic()
    (ending,) = launch(1, signalled_twice, cut, "writing", 1)
    assert ending.code == 128 + signal.SIGTERM
    assert "stopped at once" in ending.said
    assert saved(cut.out) == []
    assert time.monotonic() - began < 40


def test_what_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.save_on_signal(lambda: "never"):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def fail():
    raise ConnectionError("the critic is gone")


def failing(config, moment):
    train(config, moment, fail)


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        ("a validation pass", "resumes from step 2, in"),
        ("writing a clip", "resumes from step 2, in"),
        ("scoring", "resumes from step 3, in"),
        ("averaging", "step 1 was interrupted in the middle of its update; no step is saved"),
        ("evaluating", "is complete; run the same command again to evaluate it"),
    ],
)
def test_a_failure_at_any_moment_says_what_is_saved(config, whole, moment, message, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, failing, cut, moment)
    assert ending.code == 1, ending.said
    said = ending.said.replace("\n", "")
    assert "the critic is gone" in said
    assert message in said
    onlinevpo.train(cut)
    is_the_run_that_was_not_cut(cut.out, whole)


# Several processes ---------------------------------------------------------------------------------------------------


def struck(config, moment, rank, number, slow=0.0):
    """A process of several, of which one gets a signal; or, with rank -1, the launcher's process group gets it.

    Args:
        slow: seconds that the disk takes to write.
    """
    save = checkpoint_files.save_file

    def slowly(*arguments):
        time.sleep(slow)
        save(*arguments)

    checkpoint_files.save_file = slowly
    pid = -os.getpgid(os.getppid()) if rank < 0 else os.getpid()
    here = int(os.environ["RANK"]) == max(rank, 0)
    train(config, moment, lambda: os.kill(pid, number) if here else None)


TORCHRUN = """
import pickle, sys
from tests.runtime.test_interruption import struck
struck(*pickle.loads(bytes.fromhex(sys.argv[1])))
"""


def under_torchrun(config, *arguments):
    """Two processes of a real `torchrun`; its exit code, and what they have said."""
    script = config.out.parent / "script.py"
    script.write_text(TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command.append(pickle.dumps((config, *arguments)).hex())
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True
    )
    return done.returncode, done.stderr


def agent(*arguments):
    """What `torchrun` runs, an elastic agent, in a session of its own; its two processes are forked from it."""
    os.setsid()
    settings = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork"
    )
    elastic_launch(settings, struck)(*arguments)


@pytest.mark.parametrize("dead", [0, 1])
def test_the_process_that_is_left_saves(config, dead, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    endings = launch(2, struck, cut, "sampling", dead, signal.SIGKILL)
    assert endings[dead].code == -signal.SIGKILL
    assert endings[1 - dead].code == 1
    assert "resumes from step 2, in" in endings[1 - dead].said.replace("\n", "")
    assert saved(cut.out) == [2]


def test_a_row_that_process_0_was_killed_before_writing_is_written(config, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    dead, left = launch(2, struck, cut, "logging", 0, signal.SIGKILL)
    assert (dead.code, left.code) == (-signal.SIGKILL, 1)
    assert saved(cut.out) == [2], left.said
    assert [row["step"] for row in rows(cut.out)] == [0, 0, 1]


def gone_as_weights_are_compared(config):
    run.COMPARE_EVERY = 1
    struck(config, "comparing", 1, signal.SIGKILL)


def test_the_step_before_a_comparison_of_weights_is_whole(config, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    left, dead = launch(2, gone_as_weights_are_compared, cut)
    assert (left.code, dead.code) == (1, -signal.SIGKILL)
    assert saved(cut.out) == [2], left.said


def test_it_saves_to_a_slow_disk_before_torchrun_ends_it(config, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    code, said = under_torchrun(cut, "sampling", 0, signal.SIGKILL, 3.0)
    assert code, said
    assert saved(cut.out) == [2], said
    assert "resumes from step 2, in" in said.replace("\n", "")
    assert onlinevpo.train(cut).step == 4


def test_a_signal_that_torchrun_does_not_pass_on(config, tmp_path):
    cut = replace(config, out=tmp_path / "cut")
    (ending,) = launch(1, agent, cut, "sampling", -1, signal.SIGUSR1)
    assert ending.code == -signal.SIGUSR1
    for _ in range(200):
        if saved(cut.out):
            break
        time.sleep(0.1)
    assert saved(cut.out) == [2], ending.said


def test_a_signal_to_torchruns_process_group_where_weights_are_sharded(config, tmp_path):
    cut = replace(config, out=tmp_path / "cut", policy=PolicyConfig("full", ema_decay=0.5), parallel=ParallelConfig(2))
    (ending,) = launch(1, agent, cut, "scoring", -1, signal.SIGTERM)
    assert ending.raised
    assert saved(cut.out) == [3], ending.said
    assert "stopped by SIGTERM: the same command resumes from step 3, in" in ending.said.replace("\n", "")
    assert onlinevpo.train(replace(cut, parallel=ParallelConfig())).step == 4
