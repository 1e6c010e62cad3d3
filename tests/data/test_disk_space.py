import os

import pytest

from besttake.data.disk_space import ABANDONED, BLOCK, DiskSpace


@pytest.fixture
def write(tmp_path):
    def write(room, name, size, age):
        assert room.reserve(size)
        path = room.folder / name[:2] / f"{name}.x"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (age, age))
        return path

    return write


def names(folder):
    return sorted(path.stem for path in folder.glob("*/*"))


def test_what_was_used_longest_ago_makes_room_by_its_size_and_it_is_said(tmp_path, write, caplog):
    room = DiskSpace(tmp_path, 10 * BLOCK, ".x")
    write(room, "aa", 3 * BLOCK, 1)
    write(room, "bb", 3 * BLOCK, 2)
    write(room, "cc", 3 * BLOCK, 3)
    room.mark_used(tmp_path / "aa" / "aa.x")
    assert not caplog.text
    write(room, "dd", 3 * BLOCK - 10, 4)
    assert names(tmp_path) == ["aa", "cc", "dd"]
    assert "removed the 1 least recently used files, 12.3 kB" in caplog.text


def test_no_file_is_written_that_is_larger_than_the_limit(tmp_path, write):
    room = DiskSpace(tmp_path, 10 * BLOCK, ".x")
    kept = write(room, "aa", BLOCK, 1)
    assert not room.reserve(11 * BLOCK)
    assert kept.exists()


def test_what_others_write_counts_and_what_they_have_removed_is_no_error(tmp_path, write, monkeypatch):
    one, other = DiskSpace(tmp_path, 10 * BLOCK, ".x"), DiskSpace(tmp_path, 10 * BLOCK, ".x")
    for age, name in enumerate(("aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh")):
        write((one, other)[age % 2], name, 2 * BLOCK, age)
        assert len(names(tmp_path)) <= 5
    unlink = type(tmp_path).unlink

    def too_late(path, **how):
        unlink(path, **how)
        unlink(path, **how)

    monkeypatch.setattr(type(tmp_path), "unlink", too_late)
    write(one, "ii", 9 * BLOCK, 9)
    assert names(tmp_path) == ["ii"]


def test_of_half_written_files_only_those_of_a_kill_are_removed(tmp_path, write):
    room = DiskSpace(tmp_path, BLOCK, ".x")
    write(room, "aa", BLOCK, 1)
    (tmp_path / "aa" / ".new.tmp").touch()
    (tmp_path / "aa" / ".old.tmp").touch()
    os.utime(tmp_path / "aa" / ".old.tmp", (1, 1))
    assert ABANDONED > 3600
    assert room.reserve(BLOCK)
    assert [path.name for path in tmp_path.glob("*/*")] == [".new.tmp"]


def test_what_another_user_has_written_may_stay_without_harm(tmp_path, write, monkeypatch):
    room = DiskSpace(tmp_path, 2 * BLOCK, ".x")
    theirs = write(room, "aa", BLOCK, 1)
    write(room, "bb", BLOCK, 2)

    def refused(path, **how):
        if path == theirs:
            raise PermissionError
        os.unlink(path)

    monkeypatch.setattr(type(tmp_path), "unlink", refused)
    monkeypatch.setattr(os, "utime", lambda *_: refused(theirs))
    room.mark_used(theirs)
    assert room.reserve(BLOCK)
    assert names(tmp_path) == ["aa"]
