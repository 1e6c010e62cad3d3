"""What a replication says of its environment."""

import platform
import subprocess

import torch

from besttake.replication.environment import commit, environment, packages, text_of


def test_packages_are_those_installed():
    found = packages()
    assert f"torch=={torch.__version__}" in found
    assert found == sorted(set(found), key=str.lower)


def test_a_machine_without_a_card_names_none():
    found = environment("cpu")
    assert found["python"] == platform.python_version()
    assert "driver" not in found
    text = text_of(found)
    assert f"# torch: {torch.__version__}\n" in text
    assert text.endswith(f"\n{found['packages'][-1]}\n")


def test_the_commit_is_of_a_checkout_and_tells_changes(tmp_path):
    assert commit(tmp_path) == ""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "new").touch()
    assert commit(tmp_path) == head, "untracked files are runs and the like"
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == f"{head} with changes"
