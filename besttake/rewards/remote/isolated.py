"""Critics that need other packages than besttake: each a process of its own, in a virtual environment made for it.

A folder of `isolated_critics` holds `requirements.txt`, what is installed, and `critic.py`, whose `load(path, device)`
makes the critic that `server.py` serves; neither knows of besttake. When such a critic is first asked, its environment
is made - once for all runs, and again only when the requirements change -, its server is started there, and it is
asked over the loopback address. It ends with this process, however that ends.
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
"""What the folder of a critic in an environment of its own holds."""

CRITICS = Path(__file__).parent / "isolated_critics"
ENVIRONMENTS = "BESTTAKE_ENVIRONMENTS"
"""Environment variable: the folder of the virtual environments; by default in the user's cache."""
PYTHON = "BESTTAKE_PYTHON"
"""Environment variable: the Python to make virtual environments with, where none that fits is found."""
OF_THE_RUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes: the critic is none of them."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a critic's environment is made of."""

    folder: Path
    """Of requirements.txt and critic.py."""
    pythons: tuple[str, ...] = ()
    """Versions that its packages exist for, such as "3.10", the best first; empty = any."""
    site_packages: bool = False
    """Whether it sees the packages of the Python it is made with."""


class Isolated:
    """A `Reward` in a process of its own, started when it is first asked, and again if it dies.

    Attributes:
        revision: of the weights, once it is started.
    """

    differentiable = False

    def __init__(
        self,
        name: str,
        card: CriticCard,
        needs: EnvironmentSpec,
        path: str | Path | None = None,
        device: str = "cpu",
        restarts: int = 2,
        retry: RetryPolicy | None = None,
        start_within: float = 3600.0,
    ):
        """
        Args:
            card: its `ranges` name the dimensions.
            restarts: how often the process is started again for one batch before it is given up.
            retry: of requests; a process is dead or alive, so it is not asked again for long.
            start_within: seconds for the process to load its critic, downloads included.

        Raises:
            ValueError: the folder lacks a file.
        """
        for file in FILES:
            if not (needs.folder / file).is_file():
                raise ValueError(f"critic {name}: there is no {needs.folder / file}")
        self.name, self.card, self.dimensions = name, card, tuple(card.ranges)
        self.needs, self.path, self.device = needs, path, device
        self.restarts, self.start_within = restarts, start_within
        self.retry = retry or RetryPolicy(tries=2, pause=0.1)
        self.process: Process | None = None
        self._remote: Remote | None = None
        self._lock = threading.RLock()

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are none, the environment cannot be made, or the critic cannot score one of them.
            ConnectionError: its process ended before it was ready, or died or hung once more than it may be restarted.
        """
        check_videos(self.name, videos, prompts)
        with self._lock:
            for left in reversed(range(self.restarts + 1)):
                remote = self.start()
                try:
                    return remote(videos, prompts, fps)
                except ConnectionError as error:
                    said = self.process.last_words() if self.process else ""
                    self.stop()
                    if not left:
                        raise ConnectionError(f"{error}; it was started {self.restarts + 1} times.\n{said}") from error
                    log.warning("critic %s failed, and is started again (%s)\n%s", self.name, error, said)
        raise AssertionError("the loop returns or raises")

    @property
    def identity(self) -> str:
        """Which weights it was told to load, by their content where they lie here; and what it runs."""
        weights = quick_hash(self.path) if self.path and Path(self.path).is_dir() else self.path or self.card.source
        return ", ".join([str(weights), *(content_hash(self.needs.folder / file) for file in FILES)])

    def chosen(self, frames: int, fps: float) -> list[int]:
        """The frames of a clip that it looks at; of a clip of these alone, all."""
        return select_frames(self.card, frames, fps)[0]

    def start(self) -> Remote:
        """Make the environment and start the process, unless they are there; the critic as its server has it."""
        with self._lock:
            if self._remote is None or not self.process or not self.process.alive:
                self.stop()
                python = environment(self.name, self.needs)
                self.process = Process(self.name, python, self.needs.folder / "critic.py", self.path, self.device)
                self._remote = self._meet(self.process)
            return self._remote

    def _meet(self, process: Process) -> Remote:
        try:
            remote = process.remote(self.retry, self.start_within)
        except ConnectionError as error:
            said = process.last_words()
            self.stop()
            raise ConnectionError(f"{error}; it said:\n{said}") from error
        if (remote.name, remote.dimensions) != (self.name, self.dimensions):
            self.stop()
            raise ValueError(
                f"{self.needs.folder / 'critic.py'} serves {remote.name!r} with {remote.dimensions}, "
                f"expected {self.name!r} with {self.dimensions}"
            )
        self.revision = remote.revision
        return remote

    def stop(self) -> None:
        """End the process, if there is one; the next call starts it again."""
        with self._lock:
            if self.process:
                self.process.stop()
            self.process, self._remote = None, None


class Process:
    """The server of one critic, in another Python; it ends when this object, or this process, is no more."""

    def __init__(self, name: str, python: Path, critic: Path, path: str | Path | None, device: str):
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"besttake-{name}-"))
        self.token = secrets.token_urlsafe(32)
        command = [python, "-I", "-u", Path(__file__).with_name("server.py"), critic, "--port", "0", "--with-parent"]
        command += ["--grace", "0"]  # who stops it waits for no answer
        command += ["--device", device, "--announce", self.folder / "address.json"]
        command += [] if path is None else ["--path", path]
        surroundings = {key: value for key, value in os.environ.items() if key not in OF_THE_RUN} | {TOKEN: self.token}
        log.info("starting critic %s on %s; its output: %s", name, device, self.folder / "log.txt")
        with (self.folder / "log.txt").open("wb") as output:
            self.popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,  # never written to: when this process dies it closes, and the server stops
                stdout=output,
                stderr=subprocess.STDOUT,
                env=surroundings,
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self.popen, self.folder, os.getpid())

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def remote(self, retry: RetryPolicy, within: float) -> Remote:
        """The critic, once it is loaded.

        Raises:
            ConnectionError: the process ended, or the critic was not loaded in time.
        """
        address, until, told = self.folder / "address.json", time.monotonic() + within, time.monotonic()
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
            if time.monotonic() - told > 30:
                told = time.monotonic()
                log.info("critic %s is still being loaded: %s", self.name, self.last_words(1))
            time.sleep(0.05)
        raise ConnectionError(f"critic {self.name} was not ready within {within:g} s")

    def last_words(self, lines: int = 15) -> str:
        """The end of what the process has printed."""
        return _tail(self.folder / "log.txt", lines)

    def stop(self) -> None:
        """End it, softly at first."""
        self._end()


def _end(popen: subprocess.Popen, folder: Path, owner: int) -> None:
    """End a process with all it started, and remove its folder; not from a fork of the one that started it."""
    if os.getpid() != owner:
        return
    assert popen.stdin is not None
    with suppress(OSError):
        popen.stdin.close()
    for softly in (True, False):  # the second time also for what the process has left behind
        with suppress(ProcessLookupError, PermissionError):
            _signal(popen, softly)
        with suppress(subprocess.TimeoutExpired):
            popen.wait(5)
    shutil.rmtree(folder, ignore_errors=True)


def _signal(popen: subprocess.Popen, softly: bool) -> None:
    """Ask a process and all that it has started to end, or end them; on Windows, it alone."""
    if hasattr(os, "killpg"):
        os.killpg(popen.pid, signal.SIGTERM if softly else signal.SIGKILL)
    elif softly:
        popen.terminate()
    else:
        popen.kill()


def environment(name: str, needs: EnvironmentSpec) -> Path:
    """The Python of a critic's virtual environment, which is made if there is none of these requirements yet.

    Of several processes that want it, one makes it and the others wait; half an environment is made anew.

    Raises:
        ValueError: there is no Python that fits, or the packages cannot be installed: with pip's last words.
    """
    requirements = needs.folder / "requirements.txt"
    maker, version = find_python(name, needs.pythons)
    recipe = f"{version} {needs.site_packages}\n{requirements.read_text()}"
    folder = _environments() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    python, whole = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), folder / "whole"
    if not whole.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # given back by the system if this process dies
            if not whole.exists():
                _make(name, maker, folder, python, requirements, needs.site_packages)
                whole.write_text(recipe)
    return python


def _make(name: str, maker: str, folder: Path, python: Path, requirements: Path, site_packages: bool) -> None:
    output = folder.with_suffix(".log")
    log.info("critic %s: making its environment %s, once; this can take minutes (see %s)", name, folder, output)
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
                    f"critic {name}: its environment could not be made: `{' '.join(command)}` failed. If a package is "
                    f"not to be had here, make {folder} elsewhere, or mend {requirements}. It said:\n{_tail(output)}"
                )


def find_python(name: str, versions: Sequence[str] = ()) -> tuple[str, str]:
    """A Python of one of these versions, and its version: this one, that of BESTTAKE_PYTHON, or one on the path.

    Raises:
        ValueError: there is none.
    """
    asked = os.environ.get(PYTHON)
    for python in [asked] if asked else [sys.executable, *(f"python{version}" for version in versions)]:
        version = _version(python)
        if version and (version in versions or not versions):
            return python, version
    where = f"{PYTHON} names {asked}, which is {_version(asked) or 'none'}" if asked else "none is on the path"
    raise ValueError(
        f"critic {name} runs in Python {' or '.join(versions)}, and {where}; "
        f"install one of these, or name it: {PYTHON}=/path/to/python{versions[0] if versions else ''}"
    )


def _version(python: str) -> str | None:
    """Such as "3.10"; None if this is no Python that runs."""
    ask = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
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
