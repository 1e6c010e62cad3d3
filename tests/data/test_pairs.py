import json
from pathlib import Path

import pytest

from besttake.data.pairs import PreferencePair, read_pairs, write_pairs


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(b"video")
    return tmp_path


def pair(folder, **changes):
    fields = {
        "prompt": "a grün ball",
        "winner": folder / "a.mp4",
        "losers": [folder / "b.mp4", folder / "c.mp4"],
        "margin": 0.25,
        "source": "online",
        "scores": {"world": [0.5, 0.25, 0.0]},
        "policy": "tiny-wan+run",
        "policy_step": 40,
    }
    return PreferencePair(**(fields | changes))


def test_pairs_come_back(folder):
    pairs = [pair(folder), pair(folder, source="human", scores={}, losers=[folder / "b.mp4"])]
    write_pairs(folder / "pairs.jsonl", pairs)
    assert read_pairs(folder / "pairs.jsonl") == pairs


def test_all_bad_lines_are_named_at_once_and_skipped_on_request(folder):
    rows = [
        {"prompt": "a", "winner": winner, "losers": ["b.mp4"]} for winner in ("a.mp4", "gone.mp4", "b.mp4", "c.mp4")
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "a')
    with pytest.raises(ValueError, match=r"line 5: not JSON"):
        read_pairs(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ValueError, match=r"(?s)2 of 4 pairs of .*line 2: .*gone\.mp4 does not exist\n.*line 3: .*among"
    ):
        read_pairs(path)
    assert [pair.winner.name for pair in read_pairs(path, skip_bad=True)] == ["a.mp4", "c.mp4"]


def test_the_folder_can_move(folder):
    (folder / "lists").mkdir()
    write_pairs(folder / "lists" / "pairs.jsonl", [pair(folder)])
    row = json.loads((folder / "lists" / "pairs.jsonl").read_text())
    assert row["winner"] == "../a.mp4"
    moved = folder.rename(folder.with_name("moved"))
    assert read_pairs(moved / "lists" / "pairs.jsonl")[0].winner.resolve() == (moved / "a.mp4").resolve()


def test_relative_paths_are_meant_from_where_one_stands(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write_pairs("lists/pairs.jsonl", [pair(Path())])
    assert read_pairs("lists/pairs.jsonl")[0].winner.resolve() == (folder / "a.mp4").resolve()


def test_the_fields_names_are_read(folder):
    line = {"prompt": "a ball", "chosen": "a.mp4", "rejected": "b.mp4"}
    (folder / "pairs.jsonl").write_text(json.dumps(line))
    (read,) = read_pairs(folder / "pairs.jsonl")
    assert read == PreferencePair("a ball", folder / "a.mp4", [folder / "b.mp4"])
    assert (read.source, read.margin, read.scores) == ("offline", 0.0, {})


GOOD = {"prompt": "a ball", "winner": "a.mp4", "losers": ["b.mp4"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, '"prompt" is None, expected text'),
        ({"prompt": " "}, "\"prompt\" is ' ', expected text"),
        ({"winner": 3}, '"winner" holds 3, expected the path'),
        ({"winner": "gone.mp4"}, r'"winner": .*gone\.mp4 does not exist'),
        ({"losers": []}, r'"losers" \(or "rejected"\) is \[\]'),
        ({"losers": [None]}, '"losers" holds None'),
        ({"losers": ["b.mp4", "gone.mp4"]}, r'"losers": .*gone\.mp4 does not exist'),
        ({"losers": ["a.mp4"]}, "is among its own"),
        ({"chosen": "b.mp4"}, 'both "winner" and "chosen"'),
        ({"margins": 1}, 'unknown key "margins"'),
        ({"margin": "1"}, "\"margin\" is '1', expected a finite number"),
        ({"margin": float("nan")}, '"margin" is nan'),
        ({"margin": True}, '"margin" is True'),
        ({"source": 1}, '"source" is 1, expected text'),
        ({"scores": [1, 2]}, '"scores" is .* expected'),
        ({"scores": {"world": [1.0]}}, '"scores" has 1 numbers under "world", expected 2'),
        ({"scores": {"world": [1.0, None]}}, r'"scores\.world" is None'),
        ({"policy": 1}, '"policy" is 1'),
        ({"policy_step": 1.5}, r'"policy_step" is 1\.5'),
        ({"policy_step": -1}, '"policy_step" is -1'),
    ],
)
def test_a_bad_line_is_named(folder, change, message):
    (folder / "pairs.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 3: .*" + message):
        read_pairs(folder / "pairs.jsonl")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("prompt", '"prompt" is missing'),
        ("winner", r'"winner" \(or "chosen"\) is missing'),
        ("losers", '"losers" .*or'),
    ],
)
def test_a_missing_key_is_named(folder, key, message):
    (folder / "pairs.jsonl").write_text(json.dumps({name: GOOD[name] for name in GOOD if name != key}))
    with pytest.raises(ValueError, match=f"line 1: {message}"):
        read_pairs(folder / "pairs.jsonl")


def test_no_pairs(folder):
    (folder / "pairs.jsonl").touch()
    with pytest.raises(ValueError, match="holds no preference pairs"):
        read_pairs(folder / "pairs.jsonl")
    with pytest.raises(ValueError, match="is not a file"):
        read_pairs(folder / "gone.jsonl")


def test_a_failed_write_leaves_the_old_file(folder):
    write_pairs(folder / "pairs.jsonl", [pair(folder)])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_pairs(folder / "pairs.jsonl", [pair(folder, margin=float("nan"))])
    assert read_pairs(folder / "pairs.jsonl") == [pair(folder)]
