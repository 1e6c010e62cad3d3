import errno
import fcntl
import json
import logging
import os
import resource
from threading import Timer
from types import SimpleNamespace

import pytest
import torch

from besttake.training import checkpoint_files
from besttake.training.checkpoint_files import (
    STATE,
    TENSORS,
    checkpoints,
    load_tensors,
    newest_checkpoint,
    save_checkpoint,
)


def save(folder, step, **more):
    save_checkpoint(folder, step, {"a": torch.full((100,), float(step))}, {"seconds": 1.5}, **more)
    return checkpoints(folder)[-1]


def load_newest(folder):
    path, state = newest_checkpoint(folder)
    return load_tensors(path), state


def test_what_is_saved_is_loaded(tmp_path):
    tensors = {"half": torch.randn(3, 2).bfloat16(), "turned": torch.randn(4, 5).T, "number": torch.tensor(7.0)}
    save_checkpoint(tmp_path, 12, tensors, {"config": "abc"})
    loaded, state = load_newest(tmp_path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    assert (state["step"], state["config"]) == (12, "abc")


def test_no_folder_is_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_the_newest_is_loaded_and_the_oldest_are_deleted(tmp_path):
    for step in (9, 10, 100):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    assert load_newest(tmp_path)[1]["step"] == 100


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"a": torch.zeros(1)}, {})
    assert load_newest(tmp_path)[0]["a"].tolist() == [0]


def cut_tensors(path):
    (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:-50])


def cut_state(path):
    (path / STATE).write_text((path / STATE).read_text()[:-5])


def lose_tensors(path):
    (path / TENSORS).unlink()


def garble_tensors(path):
    (path / TENSORS).write_bytes(b"\xff" * (path / TENSORS).stat().st_size)


@pytest.mark.parametrize("damage", [cut_tensors, cut_state, lose_tensors, garble_tensors])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog, damage):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    with caplog.at_level(logging.WARNING):
        tensors, state = load_newest(tmp_path)
    assert state["step"] == 1
    assert tensors["a"][0] == 1
    assert "step-00000002 is damaged" in caplog.text
    save(tmp_path, 2)  # and it is in nobody's way
    assert load_newest(tmp_path)[1]["step"] == 2


def test_a_checkpoint_that_was_being_written_is_not_there(tmp_path):
    save(tmp_path, 1)
    partial = tmp_path / ".step-00000002.part"
    partial.mkdir()
    (partial / TENSORS).write_bytes(b"half")
    assert load_newest(tmp_path)[1]["step"] == 1
    save(tmp_path, 3)
    assert not partial.exists()


def test_a_system_that_flushes_neither_folders_nor_files_open_for_reading_will_do(tmp_path, monkeypatch):
    """Such as Windows."""
    flushed = []

    def open_file(path, flags):
        if path.is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return os.open(path, flags)

    def flush(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(descriptor)

    windows = {name: getattr(os, name) for name in ("close", "replace", "O_RDONLY", "O_RDWR")}
    monkeypatch.setattr(
        "besttake.training.checkpoint_files.os", SimpleNamespace(**windows, open=open_file, fsync=flush)
    )
    save(tmp_path, 1)
    assert newest_checkpoint(tmp_path)[1]["step"] == 1
    assert len(flushed) == 2


def test_a_full_disk_is_reported_and_leaves_what_was_there(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(tensors, path):
        path.write_bytes(b"as much as fitted")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_file", full)
        with pytest.raises(OSError, match=f"step 2 could not be written to {tmp_path}: .*No space left on device"):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_newest(tmp_path)[1]["step"] == 1


def test_a_write_that_the_system_refuses_leaves_what_was_there(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # the tensors alone are 400 bytes
    try:
        with pytest.raises(OSError, match="step 2 could not be written to"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_disk_that_cannot_be_read_loses_nothing(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def failing(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.safe_open", failing)
        with pytest.raises(PermissionError):
            newest_checkpoint(tmp_path)
    assert load_newest(tmp_path)[1]["step"] == 1


def test_the_state_tells_the_size_of_the_tensors(tmp_path):
    path = save(tmp_path, 1)
    assert json.loads((path / STATE).read_text())["bytes"] == (path / TENSORS).stat().st_size


def test_files_that_a_shared_disk_shows_late_are_waited_for_but_not_for_ever(tmp_path):
    save(tmp_path, 1)
    path, state = newest_checkpoint(tmp_path)
    checkpoint_files.wait_for_checkpoint(path, state, 0)
    whole = (path / checkpoint_files.TENSORS).read_bytes()
    for late in (b"", whole[:-1], None):
        (path / checkpoint_files.TENSORS).unlink(missing_ok=True)
        if late is not None:
            (path / checkpoint_files.TENSORS).write_bytes(late)
        with pytest.raises(OSError, match=r"process 0 sees .*but this process does not after 0.1 s"):
            checkpoint_files.wait_for_checkpoint(path, state, 0.1)
    Timer(0.15, (path / checkpoint_files.TENSORS).write_bytes, [whole]).start()
    checkpoint_files.wait_for_checkpoint(path, state, 20)
