import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from besttake.data.files import (
    SAMPLE_BYTES,
    SAMPLES,
    atomic,
    content_hash,
    normalise_files,
    quick_hash,
    read_jsonl,
    read_text,
    save_tensors,
)


def test_atomic_shows_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(TypeError), atomic(path) as temporary:
        temporary.write_text(2)
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_text_without_mark_and_only_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffgrün".encode())
    assert read_text(path) == "grün"
    path.write_bytes("grün".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        read_text(path)
    with pytest.raises(ValueError, match=r"b\.txt is not a file"):
        read_text(tmp_path / "b.txt")


def test_json_lines_are_numbered_as_an_editor_does(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028y"}\n\n{"a": 2}\n', encoding="utf-8")
    assert read_jsonl(path) == [(1, {"a": "x\u2028y"}), (3, {"a": 2})]
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not JSON"):
        read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"line 1: expected an object .* got list"):
        read_jsonl(path)


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], indirect=True)
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path, umask):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    with atomic(tmp_path / "b.safetensors") as part:
        save_file({"x": torch.ones(2)}, part)
    (tmp_path / "c").mkdir()
    save_file({"x": torch.ones(2)}, tmp_path / "c" / "d.safetensors")
    normalise_files(tmp_path)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(("a.safetensors", "b.safetensors", "d.safetensors"), 0o666 & ~umask)


def test_two_that_write_the_same_file_do_not_write_the_same_part(tmp_path):
    with atomic(tmp_path / "a") as one, atomic(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert os.listdir(tmp_path) == ["a"]


def test_metadata_are_written_in_the_same_order_every_time(tmp_path):
    for name in ("a", "b", "c"):
        save_tensors(tmp_path / name, {"x": torch.ones(2), "y": torch.ones(3)}, dict.fromkeys("gcadbfe", "grün"))
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1
    assert load_file(tmp_path / "a")["y"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("place", [0, 17, -1])
def test_content_is_all_of_a_file(tmp_path, place):
    before = bytearray(os.urandom(100))
    (tmp_path / "a").write_bytes(before)
    first = content_hash(tmp_path / "a")
    (tmp_path / "b").write_bytes(before)
    assert content_hash(tmp_path / "b") == first
    before[place] ^= 1
    (tmp_path / "b").write_bytes(before)
    os.utime(tmp_path / "b", ns=(0, (tmp_path / "a").stat().st_mtime_ns))
    assert content_hash(tmp_path / "b") != first


def test_of_a_large_file_pieces_from_the_first_byte_to_the_last_are_content(tmp_path):
    pieces = bytearray(4 * SAMPLES * SAMPLE_BYTES)
    (tmp_path / "a").write_bytes(pieces)
    first, seen = content_hash(tmp_path / "a", full_bytes=1000), {}
    for place in (0, SAMPLE_BYTES + 1, len(pieces) - 1):
        pieces[place] = 1
        (tmp_path / "b").write_bytes(pieces)
        pieces[place] = 0
        seen[place] = content_hash(tmp_path / "b", full_bytes=1000) != first
    assert list(seen.values()) == [True, False, True]
    (tmp_path / "b").write_bytes(bytes(pieces)[:-1])
    assert content_hash(tmp_path / "b", full_bytes=1000) != first


def test_a_glimpse_tells_folders_of_weights_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(bytes(1_000_000))
    first = quick_hash(tmp_path / "a")
    assert quick_hash(tmp_path / "b") == first
    for other in ("weights.bin", "weights.fp16.safetensors", ".DS_Store", "README.md"):
        (tmp_path / "b" / other).write_bytes(b"not read")
    assert quick_hash(tmp_path / "b") == first
    (tmp_path / "b" / "config.json").write_text("{}")
    assert quick_hash(tmp_path / "b") != first
    (tmp_path / "b" / "config.json").unlink()
    (tmp_path / "b" / "weights.safetensors").write_bytes(bytes(500_000) + b"1" + bytes(499_999))
    assert quick_hash(tmp_path / "b") != first
    (tmp_path / "a" / "weights.safetensors").rename(tmp_path / "a" / "weights.bin")
    (tmp_path / "b" / "weights.safetensors").unlink()
    assert quick_hash(tmp_path / "a") != quick_hash(tmp_path / "b")
