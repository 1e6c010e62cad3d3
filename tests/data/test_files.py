import pytest

from besttake.data.files import atomic, read_jsonl, read_text


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
