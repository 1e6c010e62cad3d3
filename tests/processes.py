"""Several processes for a test, started as `torchrun` starts them, from one that has imported everything already."""

import logging
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from besttake.models import model_classes
from besttake.rewards import critic_names

model_classes(), critic_names()  # imports them all, here once instead of in every process
_fork, _small = multiprocessing.get_context("fork"), multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Ending:
    """How a process has ended: what its task returned, or the traceback; its exit code, and its standard error."""

    returned: Any
    raised: str
    code: int | None
    said: str


def launch(size: int, task: Callable, *arguments, silent: int = 0, seconds: float = 60) -> list[Ending]:
    """Run `task(*arguments)` in so many processes; how each has ended. One that takes too long fails the test.

    Args:
        silent: so many of the last ones stop for good, and are killed when the others have ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        places, port = [Path(folder) / str(rank) for rank in range(size)], _free_port()
        workers = [
            _started((_environment(rank, size, port), place, task, arguments)) for rank, place in enumerate(places)
        ]
        for worker in workers[: size - silent]:
            worker.join(seconds)
        late = [worker for worker in workers[: size - silent] if worker.is_alive()]
        for worker in workers:
            worker.kill()
            worker.join()
        assert not late, f"{len(late)} of {size} processes hang\n" + "\n".join(map(_said, places))
        return [
            Ending(*_result(place), worker.exitcode, _said(place))
            for place, worker in zip(places, workers, strict=True)
        ]


def _started(arguments: tuple) -> Any:
    """A process forked from this one or, where so much address space was once taken that it cannot be, a new one."""
    try:
        worker: Any = _fork.Process(target=_work, args=arguments)
        worker.start()
    except OSError:
        worker = _small.Process(target=_work, args=arguments)
        worker.start()
    return worker


def results(endings: list[Ending]) -> list[Any]:
    """What processes that have all ended well returned."""
    for ending in endings:
        assert ending.code == 0, ending.said
        assert not ending.raised, ending.raised
    return [ending.returned for ending in endings]


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _work(environment: dict[str, str], place: Path, task: Callable, arguments: tuple) -> None:
    os.environ |= environment
    os.dup2(os.open(place.with_suffix(".log"), os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)  # pytest has its own, and its own handlers
    logging.getLogger().handlers.clear()
    try:
        result = task(*arguments), ""
    except Exception:
        result = None, traceback.format_exc()
    place.write_bytes(pickle.dumps(result))


def _result(place: Path) -> tuple[Any, str]:
    return pickle.loads(place.read_bytes()) if place.exists() else (None, "")


def _said(place: Path) -> str:
    log = place.with_suffix(".log")
    return log.read_text() if log.exists() else ""
