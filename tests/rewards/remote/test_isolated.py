import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy
import pytest
import torch

from besttake.rewards import load_reward
from besttake.rewards.checks import score_checked
from besttake.rewards.remote.client import Remote
from besttake.rewards.remote.http import RetryPolicy
from besttake.rewards.remote.isolated import EnvironmentSpec, Isolated, environment, find_python
from besttake.types import CriticCard

CARD = CriticCard("tests", "none", {"light": (0.0, 255.0)})

CRITIC = """
import os, sys, time
import lent
import numpy as np

def load(path, device):
    assert "besttake" not in sys.modules
    if path == "missing":
        raise FileNotFoundError("there are no weights in 'missing'")
    return Light()

class Light:
    name, dimensions, revision, frames = "light", ("light",), lent.REVISION, 2

    def __call__(self, videos, prompts, fps):
        for prompt in prompts:
            what, _, once = prompt.partition(" ")
            if once and os.path.exists(once):
                continue
            if once:
                open(once, "w").close()
            if what == "die":
                os._exit(3)
            if what == "hang":
                time.sleep(60)
        return np.array([[video.mean()] for video in videos])
"""


@pytest.fixture(scope="session")
def spec(tmp_path_factory):
    """A critic that needs a package of its own, and borrows numpy: all is installed without a network."""
    folder = tmp_path_factory.mktemp("light")
    numpy_is_in = str(Path(numpy.__file__).parent.parent)
    files = {
        "lent.py": "REVISION = 'seven'\n",
        "lent.pth": numpy_is_in + "\n",
        "lent-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: lent\nVersion: 1.0\n",
        "lent-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, "lent-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(folder / "lent-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, "lent-1.0.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)
    (folder / "requirements.txt").write_text(f"{folder}/lent-1.0-py3-none-any.whl\n")
    (folder / "critic.py").write_text(CRITIC)
    return EnvironmentSpec(folder)


@pytest.fixture(scope="session")
def environments(tmp_path_factory):
    return tmp_path_factory.mktemp("environments")


@pytest.fixture
def critic(spec, environments, monkeypatch):
    """The critic, in the environment that the first test has made."""
    monkeypatch.setenv("BESTTAKE_ENVIRONMENTS", str(environments))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    made = Isolated("light", CARD, spec, retry=RetryPolicy(answer=10.0, tries=1, pause=0.01))
    yield made
    made.stop()


def films(*levels):
    return (torch.tensor(levels).float() / 127.5 - 1).view(-1, 1, 1, 1, 1).expand(-1, 4, 3, 8, 8)


def gone(pid):
    """Whether a process ends within ten seconds."""
    for _ in range(500):
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_it_is_a_reward_like_any_other_and_what_it_does_is_logged(critic, environments, caplog):
    caplog.set_level(logging.INFO)
    assert not list(environments.glob("*/whole"))
    assert score_checked(critic, films(10, 20), ["a", "b"], 8.0).values.tolist() == [[10], [20]]
    assert critic.revision == "seven"
    assert "creating its environment" in caplog.text
    assert "-m venv" in caplog.text
    assert "pip install" in caplog.text
    assert len(list(environments.glob("light-*/whole"))) == 1


def test_the_environment_is_made_once(critic, spec, environments):
    python = environment("light", spec)
    before = {path: path.stat().st_mtime_ns for path in environments.iterdir()}
    assert environment("light", spec) == python
    assert {path: path.stat().st_mtime_ns for path in environments.iterdir()} == before


def test_half_an_environment_is_made_anew(tmp_path, spec, monkeypatch):
    monkeypatch.setenv("BESTTAKE_ENVIRONMENTS", str(tmp_path))
    steps = []

    def run(command, **_):
        steps.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir()
        if len(steps) == 1:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("besttake.rewards.remote.isolated._version", lambda python: "3.11")
    monkeypatch.setattr("besttake.rewards.remote.isolated.subprocess.run", run)
    with pytest.raises(KeyboardInterrupt):
        environment("light", spec)
    (leftover,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (leftover / "half").touch()
    threads = [threading.Thread(target=environment, args=("light", spec)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(steps) == 3  # broken off; then venv and pip, by one thread alone
    assert (leftover / "whole").exists()
    assert not (leftover / "half").exists()


def test_other_requirements_are_another_environment(tmp_path, spec, monkeypatch):
    monkeypatch.setenv("BESTTAKE_ENVIRONMENTS", str(tmp_path / "all"))
    monkeypatch.setattr("besttake.rewards.remote.isolated._create", lambda name, maker, folder, *_: folder.mkdir())
    (tmp_path / "requirements.txt").write_text("lent==2.0\n")
    first = environment("light", spec)
    assert environment("light", EnvironmentSpec(tmp_path)) != first
    assert environment("light", EnvironmentSpec(spec.folder, site_packages=True)) != first


def test_a_package_that_cannot_be_had_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("BESTTAKE_ENVIRONMENTS", str(tmp_path / "all"))
    (tmp_path / "requirements.txt").write_text("no-such-package==1.0\n")
    python = tmp_path / "python"  # makes environments in which pip finds nothing
    python.write_text(
        "#!/bin/sh\ncase $* in *version_info*) echo 3.11;; *) mkdir -p $4/bin && ln -s $0.pip $4/bin/python;; esac"
    )
    pip = tmp_path / "python.pip"
    pip.write_text("#!/bin/sh\necho ERROR: No matching distribution found for no-such-package==1.0\nexit 1\n")
    for program in (python, pip):
        program.chmod(0o755)
    monkeypatch.setenv("BESTTAKE_PYTHON", str(python))
    with pytest.raises(ValueError, match=r"(?s)critic light: .*pip install.*ERROR: No matching.*no-such-package==1.0"):
        environment("light", EnvironmentSpec(tmp_path))
    assert not list((tmp_path / "all").glob("*/whole"))


def test_a_python_that_fits_is_found_or_requested(monkeypatch):
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert find_python("light") == find_python("light", ("2.7", here)) == (sys.executable, here)
    with pytest.raises(ValueError, match=r"Python 2.6, but none is on the PATH; .*BESTTAKE_PYTHON=/path/to/python2.6"):
        find_python("light", ("2.6",))
    monkeypatch.setenv("BESTTAKE_PYTHON", sys.executable)
    with pytest.raises(ValueError, match=rf"BESTTAKE_PYTHON is .*which is {here}"):
        find_python("light", ("2.6",))


def test_a_process_that_dies_is_started_again_and_nothing_is_lost(critic, tmp_path):
    critic.start()
    first = critic.process.popen.pid
    prompts = ["a", f"die {tmp_path / 'once'}", "c"]
    assert critic(films(1, 2, 3), prompts).values[:, 0].tolist() == [1, 2, 3]
    assert critic.process.popen.pid != first
    assert gone(first)


def test_a_process_that_hangs_is_started_again(critic, tmp_path):
    critic.retry = RetryPolicy(answer=0.5, tries=1)
    critic.start()
    first = critic.process.popen.pid
    assert critic(films(1), [f"hang {tmp_path / 'once'}"]).values.tolist() == [[1]]
    assert gone(first)


def test_a_process_that_always_dies_is_given_up(critic):
    critic.restarts = 1
    with pytest.raises(
        ConnectionError, match=r"(?s)critic light at http.*light of the video of 'die'.*started 2 times"
    ):
        critic(films(1), ["die"])
    assert critic.process is None
    assert critic(films(1), ["live"]).values.tolist() == [[1]]


def test_a_critic_that_cannot_be_loaded_says_why_and_leaves_nothing(critic):
    critic.path = "missing"
    with pytest.raises(ConnectionError, match=r"(?s)ended with status 1 before it was ready.*there are no weights in"):
        critic.start()
    assert critic.process is None


def test_a_folder_that_serves_another_critic_is_refused(critic):
    critic.dimensions = ("light", "shade")
    with pytest.raises(ValueError, match=r"serves 'light' with \('light',\), expected .*'shade'"):
        critic.start()
    assert critic.process is None


def test_only_who_knows_the_token_is_answered(critic):
    url = critic.start().servers[0].url
    with pytest.raises(ValueError, match="token"):
        Remote(url, retry=RetryPolicy(tries=1))


def test_it_stops_with_its_folder_and_when_it_is_forgotten(critic):
    critic.start()
    pid, folder = critic.process.popen.pid, critic.process.folder
    critic.stop()
    assert gone(pid)
    assert not folder.exists()
    critic.start()
    pid = critic.process.popen.pid
    critic.process = None  # nobody holds it any more
    assert gone(pid)


PARENT = """
import json, sys, time
from pathlib import Path
from besttake.rewards.remote.isolated import EnvironmentSpec, Isolated
from besttake.types import CriticCard

critic = Isolated("light", CriticCard("tests", "none", {"light": (0.0, 255.0)}), EnvironmentSpec(Path(sys.argv[1])))
critic.start()
print(critic.process.popen.pid, flush=True)
if sys.argv[2] != "ends":
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["ends", "SIGKILL"])
def test_no_process_is_left_behind_however_its_parent_ends(critic, spec, how):
    command = [sys.executable, "-c", PARENT, str(spec.folder), how]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    pid = int(parent.stdout.readline())
    if how != "ends":
        os.kill(parent.pid, getattr(signal, how))
    parent.wait(20)
    parent.stdout.close()
    assert gone(pid)


def test_a_system_without_process_groups_will_do(critic, monkeypatch):
    """Such as Windows."""
    monkeypatch.delattr(os, "killpg")
    critic.start()
    pid = critic.process.popen.pid
    critic.stop()
    assert gone(pid)


@pytest.mark.parametrize("name", ["qalign", "visionreward"])
def test_published_critics_are_found_by_name_and_start_nothing_before_they_score(name):
    critic = load_reward(name, "cuda", "some/weights")
    assert critic.name == name
    assert critic.process is None
    assert (critic.path, critic.device) == ("some/weights", "cuda")
    assert critic.dimensions == tuple(critic.card.ranges)
    source = (critic.spec.folder / "critic.py").read_text()
    compile(source, name, "exec")
    assert f'name = "{name}"' in source
    assert f"frame_rate = {critic.card.frame_rate}" in source
    assert all(json.dumps(dimension) in source for dimension in critic.dimensions)
    pins = [line for line in (critic.spec.folder / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert all("==" in pin for pin in pins)


def test_a_folder_without_requirements_is_no_critic(tmp_path):
    with pytest.raises(ValueError, match=r"critic light: there is no .*requirements.txt"):
        Isolated("light", CARD, EnvironmentSpec(tmp_path))
