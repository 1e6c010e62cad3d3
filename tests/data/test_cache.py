import os

import pytest
import torch

from besttake.data.cache import TensorCache, versions


@pytest.fixture
def cache(tmp_path):
    return TensorCache(tmp_path / "cache")


def test_what_was_written_is_read_under_its_key_alone(cache):
    tensors = {"text": torch.randn(2, 3).bfloat16(), "mask": torch.tensor([[True, False]])}
    cache.write(tensors, "text", "t5", 226, "a red ball")
    found = TensorCache(cache.folder).read("text", "t5", 226, "a red ball")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert cache.read("text", "t5", 226, "a blue ball") is None
    assert cache.read("text", "t5", "226", "a red ball") is None


def test_a_damaged_file_is_made_again(cache, caplog):
    cache.write({"x": torch.ones(100)}, 1)
    (file,) = cache.folder.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    assert cache.read(1) is None
    assert "is damaged" in caplog.text
    cache.write({"x": torch.zeros(3)}, 1)
    assert cache.read(1)["x"].tolist() == [0, 0, 0]


def test_a_full_disk_is_reported_and_nothing_half_written_is_left(cache, monkeypatch):
    cache.write({"x": torch.ones(2)}, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"could not be written to: .*No space left"):
        cache.write({"x": torch.zeros(2)}, 1)
    assert [path.suffix for path in cache.folder.rglob("*") if path.is_file()] == [".safetensors"]
    assert cache.read(1)["x"].tolist() == [1, 1]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the cache .*/file cannot be written to"):
        TensorCache(tmp_path / "file")


def test_the_versions_of_what_computes_are_part_of_every_key(cache, monkeypatch):
    cache.write({"x": torch.ones(2)}, 1)
    monkeypatch.setattr("besttake.data.cache.versions", lambda: versions() | {"torch": "0.1"})
    assert cache.read(1) is None


def test_the_folder_stays_within_its_limit_and_what_was_read_last_stays(tmp_path, caplog):
    cache = TensorCache(tmp_path, limit=200_000)
    for i in range(12):
        cache.write({"x": torch.full((5_000,), float(i))}, i)
        for age, file in enumerate(sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(file, (age, age))  # no clock is fine enough for a test
        assert cache.read(0)["x"].max() == 0  # in use all the time
    assert [i for i in range(12) if cache.read(i)] == [0, *range(5, 12)]
    assert f"{tmp_path} had" in caplog.text


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path, caplog):
    cache = TensorCache(tmp_path, limit=20_000)
    cache.write({"x": torch.ones(10)}, 1)
    cache.write({"x": torch.ones(10_000)}, 2)
    assert cache.read(1)
    assert cache.read(2) is None
    assert "these tensors exceed the limit" in caplog.text


def test_what_is_removed_while_it_is_in_use_stays_in_memory(cache):
    cache.write({"x": torch.ones(100)}, 1)
    found = cache.read(1)
    (file,) = cache.folder.rglob("*.safetensors")
    with file.open("r+b") as open_file:
        open_file.truncate(0)  # what another machine's removal looks like to whoever has mapped the file
    assert found["x"].sum() == 100
