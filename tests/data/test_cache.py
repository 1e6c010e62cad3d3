import os

import pytest
import torch

from besttake.data.cache import TensorCache, content, glimpse


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


def test_a_full_disk_is_told_and_nothing_half_written_is_left(cache, monkeypatch):
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


def test_a_glimpse_tells_folders_of_weights_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(bytes(1_000_000))
    assert glimpse(tmp_path / "a") == glimpse(tmp_path / "b")
    (tmp_path / "b" / "weights").write_bytes(os.urandom(1_000_000))
    assert glimpse(tmp_path / "a") != glimpse(tmp_path / "b")
    assert content(tmp_path / "a" / "weights") != content(tmp_path / "b" / "weights")
    (tmp_path / "b" / "weights").write_bytes(bytes(1_000_000))
    (tmp_path / "b" / "config.json").write_text("{}")
    assert glimpse(tmp_path / "a") != glimpse(tmp_path / "b")
