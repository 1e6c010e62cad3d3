"""Datasets of `datasets`, from disk: nothing is downloaded."""

import json
from pathlib import Path

import pytest
from PIL import Image

from besttake.data.hub import Source, parse
from besttake.data.pairs import read_pairs
from besttake.data.prompts import read_prompts
from besttake.data.real import find_clips

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    return tmp_path / "cache"


@pytest.fixture
def clips(material) -> list[Path]:
    return sorted((material / "clips").glob("*.mp4"))


def held(file: Path) -> dict:
    """A video as a dataset holds it."""
    return {"bytes": file.read_bytes(), "path": file.name}


def test_prompts_of_a_split_saved_to_disk(tmp_path):
    train, test = (datasets.Dataset.from_dict({"text": texts}) for texts in (["a cat", "a dog"], ["an owl"]))
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "set")
    assert read_prompts(f"hf:{tmp_path / 'set'}") == ["a cat", "a dog"]
    assert read_prompts(f"hf:{tmp_path / 'set'}:test?prompt=text") == ["an owl"]
    with pytest.raises(ValueError, match=r"no split 'validation'; there are train, test"):
        read_prompts(f"hf:{tmp_path / 'set'}:validation")


def test_prompts_with_first_frames(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "frame.png")
    data = datasets.Dataset.from_dict({"prompt": ["a cat"], "image": [str(tmp_path / "frame.png")]})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    (prompt,) = read_prompts(f"hf:{tmp_path / 'set'}")
    assert prompt == "a cat"
    with Image.open(prompt.first_frame) as frame:
        assert frame.getpixel((0, 0)) == (255, 0, 0)


def test_clips_of_a_folder_of_parquet(tmp_path, clips, cache):
    rows = {"what": ["a red ball", "a cat"], "clip": [held(file) for file in clips[:2]]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "train.parquet")
    found = find_clips(f"hf:{tmp_path / 'set'}:train?prompt=what&video=clip")
    assert [clip.caption for clip in found] == ["a red ball", "a cat"]
    assert [clip.path.read_bytes() for clip in found] == [file.read_bytes() for file in clips[:2]]
    assert all(cache in clip.path.parents for clip in found)
    written = found[0].path.stat().st_mtime_ns
    assert find_clips(f"hf:{tmp_path / 'set'}:train?prompt=what&video=clip")[0].path.stat().st_mtime_ns == written


def test_pairs_with_one_loser_or_several(tmp_path, clips):
    rows = {"prompt": ["a cat"], "chosen": [held(clips[0])], "rejected": [[held(clips[1]), held(clips[2])]]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    (pair,) = read_pairs(f"hf:{tmp_path / 'set'}")
    assert pair.winner.read_bytes() == clips[0].read_bytes()
    assert [loser.read_bytes() for loser in pair.losers] == [file.read_bytes() for file in clips[1:3]]


def test_videos_may_be_files_of_this_machine_but_no_urls(tmp_path, clips):
    datasets.Dataset.from_dict({"caption": ["a cat"], "path": [str(clips[0])]}).save_to_disk(tmp_path / "set")
    assert find_clips(f"hf:{tmp_path / 'set'}")[0].path == clips[0].resolve()
    datasets.Dataset.from_dict({"caption": ["a cat"], "path": ["https://x/a.mp4"]}).save_to_disk(tmp_path / "urls")
    with pytest.raises(ValueError, match=r"https://x/a\.mp4 is a URL"):
        find_clips(f"hf:{tmp_path / 'urls'}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:{}/nowhere", "cannot be loaded"),
        ("hf:{}/set?video=clip", "prompts have prompt, first_frame"),
        ("hf:{}/set?prompt=title", r"has no column title; there are text: \?prompt=NAME"),
        ("hf:{}/set:test", "cannot be loaded"),
    ],
)
def test_sources_that_are_none(tmp_path, source, message):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"text": "a cat"}))
    with pytest.raises(ValueError, match=message):
        read_prompts(source.format(tmp_path))


def test_without_datasets_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'besttake\[datasets\]'"):
        read_prompts("hf:a/b")


def test_parts_of_a_source():
    assert parse("hf:me/films/small:test?video=clip", "clips") == Source("me/films", "small", "test", {"video": "clip"})
    assert parse("hf:me/films", "clips") == Source("me/films", None, "train", {})
