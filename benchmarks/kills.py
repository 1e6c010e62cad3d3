"""Training runs killed by signals at random moments: is anything lost beyond the current step?

Every run is killed once, by SIGKILL, SIGTERM or Ctrl-C, at a random time; its finished steps in `metrics.jsonl` are
compared with its newest checkpoint. It is then resumed, and metrics and adapter must equal those of an uninterrupted
run bit for bit. With two processes the launcher is a real `torchrun`: SIGKILL is sent to one of its processes, SIGTERM
and Ctrl-C to the launcher's process group.

    python benchmarks/kills.py --kills 20
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import load_file

from besttake.algorithms import algorithms
from besttake.commands import cli
from besttake.commands.generate import ClipsConfig, write_clips
from besttake.data.pairs import PreferencePair, write_pairs
from besttake.data.real import find_clips
from besttake.models.policy import PolicyConfig
from besttake.rewards.panel import RewardConfig
from besttake.runtime.configuration import to_yaml
from besttake.sampling.rollout import RolloutConfig, RolloutOverrides
from besttake.training.run import OptimConfig
from besttake.training.validation import ValidationConfig

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
STEPS = 8

OWN: dict[str, dict[str, Any]] = {
    "onlinevpo": {"prompts_per_step": 1, "candidates": 2, "refresh_every": 2},
    "realdpo": {"clips_per_step": 1, "negatives": 1, "regenerate_every": 3, "reference_every": 1},
    "offline_dpo": {"pairs_per_step": 1, "refresh_every": 2},
    "sft": {"clips_per_step": 2},
}


@dataclass(frozen=True)
class KillsConfig:
    """Kill runs at random moments, and check what is lost."""

    kills: int = 20
    """Kills per signal and number of processes, distributed over the algorithms."""
    ways: tuple[int, ...] = (1, 2)
    """Numbers of processes."""
    algorithms: tuple[str, ...] = tuple(OWN)
    seed: int = 0
    out: Path | None = None
    """Where to write the figures, a .json."""


@dataclass(frozen=True)
class Kill:
    """The outcome of one kill.

    Attributes:
        finished, saved: the last finished step, and the step of the newest checkpoint.
        equal: whether the resumed run equals the uninterrupted one.
    """

    algorithm: str
    processes: int
    signal: str
    seconds: float
    code: int
    finished: int
    saved: int
    equal: bool


def write_data(folder: Path) -> None:
    clips = write_clips(ClipsConfig(folder / "clips", count=8))
    found = find_clips(str(clips))
    (folder / "prompts.txt").write_text("".join(f"{clip.caption}\n" for clip in found))
    pairs = [
        PreferencePair(one.caption, one.path, [other.path], 1.0)
        for one, other in zip(found, found[1:] + found[:1], strict=True)
    ]
    write_pairs(folder / "pairs.jsonl", pairs)


def config_of(name: str, folder: Path, out: Path, save_every: int) -> Any:
    data = {"onlinevpo": folder / "prompts.txt", "offline_dpo": folder / "pairs.jsonl"}
    own = {"reward": RewardConfig("temporal-flicker", normalise="batch")} if name == "onlinevpo" else {}
    validation = ValidationConfig(3, str(folder / "prompts.txt"), 1, ("dynamic-degree",), 1, RolloutOverrides(steps=1))
    return algorithms()[name].Config(
        data=str(data.get(name, folder / "clips")),
        out=out,
        steps=STEPS,
        save_every=save_every,
        policy=PolicyConfig(rank=2, ema_decay=0.5),
        optim=OptimConfig(lr=1e-3, warmup_steps=2, gradient_accumulation_steps=2),
        validation=validation,
        rollout=RolloutConfig(steps=1),
        **OWN[name],
        **own,
    )


def work(config: Any, rank: int = 0, environment: Mapping[str, str] | None = None) -> None:
    """`besttake train` without its report, in a process of its own."""
    os.environ |= environment or {}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which what a shell starts in the background ignores
    torch.set_num_threads(1)
    cli._report = lambda *_: None
    rank, name = int(os.environ.get("RANK", rank)), type(config).__module__.rpartition(".")[2]
    log = os.open(config.out.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    recipe = config.out.with_suffix(f".{rank}.yaml")
    recipe.write_text(to_yaml(config, algorithm=name))
    config.out.with_suffix(f".{rank}.pid").write_text(str(os.getpid()))
    sys.exit(cli.main(["train", str(recipe)]))


def fork(config: Any, processes: int) -> list[BaseProcess]:
    """Processes that have imported everything already, each a copy of this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    started = []
    for rank in range(processes):
        environment = here | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(multiprocessing.get_context("fork").Process(target=work, args=(config, rank, environment)))
        started[-1].start()
    return started


def torchrun(config: Any, processes: int) -> subprocess.Popen:
    """Processes of a real launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, __file__, "--work", pickle.dumps(config).hex()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def run_and_kill(config: Any, number: int, processes: int, after: float, rng: random.Random) -> int:
    """Start, send a signal so many seconds after training has begun; the exit code of what was started."""
    rank, pid = rng.randrange(processes), config.out.with_suffix
    if processes == 1:
        (alone,) = fork(config, 1)
        begun(config, alone.is_alive)
        time.sleep(after)
        if alone.is_alive():
            os.kill(alone.pid or 0, number)
        alone.join()
        return alone.exitcode or 0
    launcher = torchrun(config, processes)
    begun(config, lambda: launcher.poll() is None)
    time.sleep(after)
    if launcher.poll() is None:
        if number == signal.SIGKILL:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(int(pid(f".{rank}.pid").read_text()), number)
        else:
            os.killpg(launcher.pid, number)
    return launcher.wait()


def begun(config: Any, alive: Callable[[], bool]) -> float:
    """When training has begun."""
    while alive() and not (config.out / "metrics.jsonl").exists():
        time.sleep(0.01)
    return time.monotonic()


def to_its_end(config: Any, processes: int) -> None:
    started = fork(config, processes)
    for process in started:
        process.join()
    output = config.out.with_suffix(".0.log").read_text()
    assert not any(process.exitcode for process in started), output


def finished(folder: Path) -> int:
    """How many steps are surely over: a step's row is written before it is."""
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((row["step"] for row in rows), default=0)


def saved(folder: Path) -> int:
    return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=0)


def left(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["minutes"]
    return rows, load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")


def same(one: Path, other: Path) -> bool:
    (rows, weights), (expected, theirs) = left(one), left(other)
    return rows == expected and all(torch.equal(weights[name], theirs[name]) for name in theirs)


def runs_with_kills(name: str, processes: int, kills: int, folder: Path, rng: random.Random) -> Iterator[Kill]:
    """Runs of an algorithm, each ended once by each signal in turn."""
    whole = config_of(name, folder, folder / f"{name}-{processes}", 99)
    to_its_end(whole, processes)
    again = replace(whole, out=folder / "timed")
    started = fork(again, processes)
    since = begun(again, started[0].is_alive)
    for process in started:
        process.join()
    lasts = time.monotonic() - since
    print(f"{name}, {processes} process(es): lasts {lasts:.1f} s; {same(again.out, whole.out)}", flush=True)
    shutil.rmtree(again.out)
    for number in range(kills):
        for signal_name in SIGNALS:
            # nothing can be saved at a SIGKILL by the one that gets it: then every step is, on the way
            every = 1 if signal_name == "SIGKILL" and processes == 1 else 99
            out = folder / f"{name}-{processes}-{signal_name}-{number}"
            config = replace(whole, out=out, save_every=every)
            seconds = rng.uniform(0, lasts)
            code = run_and_kill(config, SIGNALS[signal_name], processes, seconds, rng)
            done, checkpoint_step = finished(out), saved(out)
            to_its_end(config, processes)
            yield Kill(name, processes, signal_name, seconds, code, done, checkpoint_step, same(out, whole.out))
            shutil.rmtree(out)


def table(found: list[Kill]) -> str:
    lines = ["| processes | signal | runs | ended before their end | steps lost beyond the one under way | equal |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for processes in dict.fromkeys(kill.processes for kill in found):
        for name in SIGNALS:
            some = [kill for kill in found if (kill.processes, kill.signal) == (processes, name)]
            lost = sum(max(0, kill.finished - kill.saved) for kill in some)
            cut = sum(kill.code != 0 for kill in some)
            equal = f"{sum(kill.equal for kill in some)} of {len(some)}"
            lines.append(f"| {processes} | {name} | {len(some)} | {cut} | {lost} | {equal} |")
    return "\n".join(lines)


def main(config: KillsConfig) -> int:
    rng, found = random.Random(config.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        for processes in config.ways:
            for algorithm in config.algorithms:
                each = -(-config.kills // len(config.algorithms))
                for kill in runs_with_kills(algorithm, processes, each, folder, rng):
                    found.append(kill)
                    if kill.finished > kill.saved or not kill.equal:
                        print(kill, flush=True)
                    if config.out:
                        config.out.write_text(json.dumps([vars(one) for one in found], indent=1))
    print(table(found))
    return int(any(kill.finished > kill.saved or not kill.equal for kill in found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(pickle.loads(bytes.fromhex(sys.argv[2])))
    sys.exit(main(tyro.cli(KillsConfig, description=__doc__)))
