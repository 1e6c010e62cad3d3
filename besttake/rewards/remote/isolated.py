"""Isolated critics, which need other packages than besttake: each runs as a process in its own virtual environment.

A folder in `isolated_critics` has a `requirements.txt`, and a `critic.py` whose `load(path, device)` makes the critic
that `server.py` serves; neither imports besttake. On the first call the environment is created (once for all runs, and
again when the requirements change) and the server is started in it; requests go over the loopback address. The server
ends when this process ends, however it ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from besttake.data.files import content_hash, quick_hash
from besttake.rewards.remote.client import Remote, Server
from besttake.rewards.remote.http import NoAnswerError, RetryPolicy
from besttake.rewards.remote.server import TOKEN, select_frames
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

log = logging.getLogger(__name__)

FILES = "requirements.txt", "critic.py"
"""Files in the folder of an isolated critic."""

CRITICS = Path(__file__).parent / "isolated_critics"
ENVIRONMENTS = "BESTTAKE_ENVIRONMENTS"
"""Environment variable: folder of the virtual environments; by default in the user's cache."""
PYTHON = "BESTTAKE_PYTHON"
"""Environment variable: the Python to create virtual environments with."""
TORCHRUN_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Variables that torchrun sets, which are removed from the critic's environment."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """The environment of an isolated critic."""

    folder: Path
    """Folder with requirements.txt and critic.py."""
    pythons: tuple[str, ...] = ()
    """Supported Python versions, such as "3.10", the preferred one first; empty = any."""
    site_packages: bool = False
    """Whether the packages of the Python that creates it are visible."""


class Isolated:
    """A `Reward` in a process of its own, started on the first call, and restarted if it dies.

    Attributes:
        revision: revision of the weights, once it is started.
    """

    differentiable = False

    def __init__(
        self,
        name: str,
        card: CriticCard,
        spec: EnvironmentSpec,
        path: str | Path | None = None,
        device: str = "cpu",
        restarts: int = 2,
        retry: RetryPolicy | None = None,
        start_within: float = 3600.0,
    ):
        """
        Args:
            card: its `ranges` name the dimensions.
            restarts: maximum number of restarts of the process per batch.
            retry: retries of requests; by default few, since the process is local.
            start_within: seconds allowed for loading the critic, including downloads.

        Raises:
            ValueError: the folder lacks a file.
        """
        for file in FILES:
            if not (spec.folder / file).is_file():
                raise ValueError(f"critic {name}: there is no {spec.folder / file}")
        self.name, self.card, self.dimensions = name, card, tuple(card.ranges)
        self.spec, self.path, self.device = spec, path, device
        self.restarts, self.start_within = restarts, start_within
        self.retry = retry or RetryPolicy(tries=2, pause=0.1)
        self.process: Process | None = None
        self._remote: Remote | None = None
        self._lock = threading.RLock()

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are invalid, the environment cannot be created, or a video cannot be scored.
            ConnectionError: the process ended before it was ready, or still dies or hangs after all restarts.
        """
        check_videos(self.name, videos, prompts)
        with self._lock:
            for left in reversed(range(self.restarts + 1)):
                remote = self.start()
                try:
                    return remote(videos, prompts, fps)
                except ConnectionError as error:
                    output = self.process.output_tail() if self.process else ""
                    self.stop()
                    if not left:
                        raise ConnectionError(
                            f"{error}; it was started {self.restarts + 1} times. Its output:\n{output}"
                        ) from error
                    log.warning("critic %s failed; restarting it (%s)\n%s", self.name, error, output)
        raise AssertionError("the loop returns or raises")

    @property
    def identity(self) -> str:
        """Key of the scores: the weights (by content, if they are local) and the critic's files."""
        weights = quick_hash(self.path) if self.path and Path(self.path).is_dir() else self.path or self.card.source
        return ", ".join([str(weights), *(content_hash(self.spec.folder / file) for file in FILES)])

    def chosen(self, frames: int, fps: float) -> list[int]:
        """Indices of the frames of a clip that the critic uses."""
        return select_frames(self.card, frames, fps)[0]

    def start(self) -> Remote:
        """Create the environment and start the process if needed. Returns a client of it."""
        with self._lock:
            if self._remote is None or not self.process or not self.process.alive:
                self.stop()
                python = environment(self.name, self.spec)
                self.process = Process(self.name, python, self.spec.folder / "critic.py", self.path, self.device)
                self._remote = self._connect(self.process)
            return self._remote

    def _connect(self, process: Process) -> Remote:
        try:
            remote = process.remote(self.retry, self.start_within)
        except ConnectionError as error:
            output = process.output_tail()
            self.stop()
            raise ConnectionError(f"{error}; its output:\n{output}") from error
        if (remote.name, remote.dimensions) != (self.name, self.dimensions):
            self.stop()
            raise ValueError(
                f"{self.spec.folder / 'critic.py'} serves {remote.name!r} with {remote.dimensions}, "
                f"expected {self.name!r} with {self.dimensions}"
            )
        self.revision = remote.revision
        return remote

    def stop(self) -> None:
        """Stop the process, if it runs; the next call starts it again."""
        with self._lock:
            if self.process:
                self.process.stop()
            self.process, self._remote = None, None


class Process:
    """The server process of one critic, in another Python. It ends with this object, or with this process."""

    def __init__(self, name: str, python: Path, critic: Path, path: str | Path | None, device: str):
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"besttake-{name}-"))
        self.token = secrets.token_urlsafe(32)
        command = [python, "-I", "-u", Path(__file__).with_name("server.py"), critic, "--port", "0", "--with-parent"]
        command += ["--grace", "0"]  # no wait for open requests on stop
        command += ["--device", device, "--announce", self.folder / "address.json"]
        command += [] if path is None else ["--path", path]
        variables = {key: value for key, value in os.environ.items() if key not in TORCHRUN_VARIABLES} | {
            TOKEN: self.token
        }
        log.info("starting critic %s on %s; its output: %s", name, device, self.folder / "log.txt")
        with (self.folder / "log.txt").open("wb") as output:
            self.popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,  # never written to: when this process dies it closes, and the server stops
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self.popen, self.folder, os.getpid())

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def remote(self, retry: RetryPolicy, within: float) -> Remote:
        """A client of the critic, once it is loaded.

        Raises:
            ConnectionError: the process ended, or the critic was not loaded in time.
        """
        address, until, logged = self.folder / "address.json", time.monotonic() + within, time.monotonic()
        server: Server | None = None
        while time.monotonic() < until:
            if not self.alive:
                status = self.popen.returncode
                raise ConnectionError(f"critic {self.name} ended with status {status} before it was ready")
            if address.is_file():
                server = server or Server(json.loads(address.read_text())["url"], self.token, retry)
                with suppress(NoAnswerError):
                    server.health()
                    return Remote(server.url, self.token, retry)
            if time.monotonic() - logged > 30:
                logged = time.monotonic()
                log.info("critic %s is still being loaded: %s", self.name, self.output_tail(1))
            time.sleep(0.05)
        raise ConnectionError(f"critic {self.name} was not ready within {within:g} s")

    def output_tail(self, lines: int = 15) -> str:
        """The last lines of the process's output."""
        return _tail(self.folder / "log.txt", lines)

    def stop(self) -> None:
        """Stop it: SIGTERM first, then SIGKILL."""
        self._end()


def _end(popen: subprocess.Popen, folder: Path, owner: int) -> None:
    """Stop a process and its children, and remove its folder; not in a fork of the process that started it."""
    if os.getpid() != owner:
        return
    assert popen.stdin is not None
    with suppress(OSError):
        popen.stdin.close()
    for softly in (True, False):  # SIGKILL also stops children that are left
        with suppress(ProcessLookupError, PermissionError):
            _signal(popen, softly)
        with suppress(subprocess.TimeoutExpired):
            popen.wait(5)
    shutil.rmtree(folder, ignore_errors=True)


def _signal(popen: subprocess.Popen, softly: bool) -> None:
    """Send SIGTERM or SIGKILL to a process and its children; on Windows, to the process only."""
    if hasattr(os, "killpg"):
        os.killpg(popen.pid, signal.SIGTERM if softly else signal.SIGKILL)
    elif softly:
        popen.terminate()
    else:
        popen.kill()


def environment(name: str, spec: EnvironmentSpec) -> Path:
    """The Python of a critic's virtual environment, which is created unless it exists for these requirements.

    Of several processes, one creates it and the others wait; an incomplete environment is created again.

    Raises:
        ValueError: there is no suitable Python, or the packages cannot be installed; with the end of pip's output.
    """
    requirements = spec.folder / "requirements.txt"
    maker, version = find_python(name, spec.pythons)
    recipe = f"{version} {spec.site_packages}\n{requirements.read_text()}"
    folder = _environments() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    python, whole = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), folder / "whole"
    if not whole.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # released by the system if this process dies
            if not whole.exists():
                _create(name, maker, folder, python, requirements, spec.site_packages)
                whole.write_text(recipe)
    return python


def _create(name: str, maker: str, folder: Path, python: Path, requirements: Path, site_packages: bool) -> None:
    output = folder.with_suffix(".log")
    log.info("critic %s: creating its environment %s once; this may take minutes (log: %s)", name, folder, output)
    shutil.rmtree(folder, ignore_errors=True)
    steps: list[list[str | Path]] = [
        [maker, "-I", "-m", "venv", *(["--system-site-packages"] if site_packages else []), folder],
        [python, "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "-r", requirements],
    ]
    with output.open("wb") as log_file:
        for step in steps:
            command = [str(part) for part in step]
            log.info("critic %s: %s", name, " ".join(command))
            if subprocess.run(command, stdout=log_file, stderr=subprocess.STDOUT, check=False).returncode:
                raise ValueError(
                    f"critic {name}: its environment could not be created: `{' '.join(command)}` failed. If a package "
                    f"is not available here, copy {folder} from another machine, or edit {requirements}. "
                    f"Its output:\n{_tail(output)}"
                )


def find_python(name: str, versions: Sequence[str] = ()) -> tuple[str, str]:
    """A Python of one of these versions, and its version: BESTTAKE_PYTHON, this one, or one on the PATH.

    Raises:
        ValueError: there is none.
    """
    chosen = os.environ.get(PYTHON)
    for python in [chosen] if chosen else [sys.executable, *(f"python{version}" for version in versions)]:
        version = _version(python)
        if version and (version in versions or not versions):
            return python, version
    found = f"{PYTHON} is {chosen}, which is {_version(chosen) or 'no Python'}" if chosen else "none is on the PATH"
    raise ValueError(
        f"critic {name} needs Python {' or '.join(versions)}, but {found}; "
        f"install it, or set {PYTHON}=/path/to/python{versions[0] if versions else ''}"
    )


def _version(python: str) -> str | None:
    """Version of a Python, such as "3.10"; None if it does not run."""
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _environments() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(ENVIRONMENTS) or cache / "besttake" / "environments")


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
