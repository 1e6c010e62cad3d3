"""Which prompt is whose: by table, by name, one after the other, or not to be told."""

import json
import logging
from dataclasses import replace

import pytest

from besttake.data.samples import read_folder, read_samples


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of files that bear the names of videos; they are not opened."""

    def make(*names):
        for name in names:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return tmp_path / "videos"

    return make


@pytest.fixture
def prompts(tmp_path):
    def write(text, name="prompts.txt"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def by_name(samples):
    return {file.name: one.prompt for one in samples for file in one.files}


def test_videos_and_prompts_one_after_the_other_in_the_order_people_count_in(folder, prompts, caplog):
    with caplog.at_level(logging.INFO):
        found = read_folder(
            folder("10.mp4", "9.mp4", "1.mp4", ".hidden.mp4", "readme.md"), prompts("one\nnine\n\nten\n")
        )
    assert by_name(found) == {"1.mp4": "one", "9.mp4": "nine", "10.mp4": "ten"}
    assert "in the order of their names" in caplog.text


def test_folders_below_are_searched_too(folder, prompts):
    found = read_folder(folder("b/2.webm", "a/1.MP4", "b/.git/3.mp4"), prompts("one\ntwo"))
    assert by_name(found) == {"1.MP4": "one", "2.webm": "two"}
    assert {one.folder for one in found} == {str(folder())}


def test_several_videos_of_a_prompt_are_told_by_their_names(folder, prompts):
    names = ("a cat, asleep-0.mp4", "a cat, asleep-1.mp4", "A_dog_barks.mp4", "formula 1.mp4")
    found = read_folder(folder(*names), prompts("formula 1\nA dog barks!\na cat, asleep\nnobody's"))
    assert by_name(found) == {
        "a cat, asleep-0.mp4": "a cat, asleep",
        "a cat, asleep-1.mp4": "a cat, asleep",
        "A_dog_barks.mp4": "A dog barks!",
        "formula 1.mp4": "formula 1",
    }
    assert [len(one.files) for one in found] == [1, 2, 1]


def test_the_names_that_generate_gives_count_the_prompts_from_0(folder, prompts):
    found = read_folder(folder("00000-0.mp4", "00000-1.mp4", "00002-0.mp4"), prompts("a\nb\nc\nd"))
    assert by_name(found) == {"00000-0.mp4": "a", "00000-1.mp4": "a", "00002-0.mp4": "c"}


def test_a_single_prompt_is_that_of_all(folder, prompts):
    assert by_name(read_folder(folder("x.mp4", "y.mp4"), prompts("a cat"))) == {"x.mp4": "a cat", "y.mp4": "a cat"}


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (("1.mp4", "2.mp4", "3.mp4"), "a\nb", "has 3 videos, and .*prompts.txt 2 prompts: it is unclear"),
        (("a cat-0.mp4", "x.mp4"), "a cat\na dog", "has 2 videos, and .* 2 prompts; 1 videos are named by a prompt"),
        (("00000-0.mp4", "00003-0.mp4", "00001-1.mp4"), "a\nb", "has 3 videos"),
    ],
)
def test_what_cannot_be_told_is_refused_with_numbers(folder, prompts, names, text, message):
    with pytest.raises(ValueError, match=message):
        read_folder(folder(*names), prompts(text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "path,prompt\nvideos/1.mp4,one\nvideos/b/2.mp4,two\n"),
        ("t.csv", "file_name,caption\n2.mp4,two\n1.mp4,one\nelsewhere.mp4,three\n"),
        ("t.jsonl", '{"path": "videos/1.mp4", "prompt": "one"}\n{"path": "2.mp4", "prompt": "two"}\n'),
    ],
)
def test_a_table_tells_by_path_or_else_by_name(folder, prompts, name, text):
    assert by_name(read_folder(folder("1.mp4", "b/2.mp4"), prompts(text, name))) == {"1.mp4": "one", "2.mp4": "two"}


def test_a_table_that_lacks_a_video_is_refused(folder, prompts):
    with pytest.raises(ValueError, match=r"t\.csv has no prompt for 2 of the 3 videos in .*such as a/1\.mp4, b/1\.mp4"):
        read_folder(folder("a/1.mp4", "b/1.mp4", "2.mp4"), prompts("path,prompt\n1.mp4,x\nq/1.mp4,y\n2.mp4,z", "t.csv"))


def test_a_jsonl_of_prompts_is_a_list(folder, prompts):
    listed = prompts('{"prompt": "one"}\n{"prompt": "two"}\n', "p.jsonl")
    assert by_name(read_folder(folder("1.mp4", "2.mp4"), listed)) == {"1.mp4": "one", "2.mp4": "two"}


@pytest.mark.parametrize(
    "files",
    [
        {"1.txt": "one", "2.txt": "two"},
        {"prompt.txt": "one\ntwo"},
        {"prompts.txt": "one\ntwo"},
        {"prompt.txt": "two\none", "video.txt": "2.mp4\n1.mp4"},
        {"metadata.csv": "path,caption\n2.mp4,two\n1.mp4,one"},
        {"samples.jsonl": '{"prompt": "one", "videos": ["1.mp4"]}\n{"prompt": "two", "videos": ["2.mp4"]}'},
    ],
    ids=str,
)
def test_prompts_beside_the_videos_are_found(folder, files):
    videos = folder("1.mp4", "2.mp4")
    for name, text in files.items():
        (videos / name).write_text(text)
    found = read_folder(videos)
    assert by_name(found) == {"1.mp4": "one", "2.mp4": "two"}
    assert {one.folder for one in found} == {str(videos)}


def test_names_that_are_text_are_prompts(folder, caplog):
    with caplog.at_level(logging.INFO):
        found = read_folder(folder("a cat plays-0.mp4", "a cat plays-1.mp4", "ein Hund bellt.mp4"))
    assert [(one.prompt, len(one.files)) for one in found] == [("a cat plays", 2), ("ein Hund bellt", 1)]
    assert "are used as prompts, the first as 'a cat plays'" in caplog.text


@pytest.mark.parametrize("names", [("1.mp4", "2.mp4"), ("a cat-0.mp4", "clip_07.mp4"), ("video 1.mp4",)])
def test_names_that_are_none_are_refused(folder, names):
    with pytest.raises(ValueError, match=rf"has {len(names)} videos and no prompts; give --prompts FILE"):
        read_folder(folder(*names))


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no folder of videos; .*--samples"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"videos has no videos \(\.mp4"):
        read_folder(folder("a.txt"))


def test_a_list_of_samples_by_hand_needs_no_more_than_prompts_and_files(folder):
    listed = folder("1.mp4", "2.mp4") / "samples.jsonl"
    listed.write_text(json.dumps({"prompt": " a cat ", "videos": ["1.mp4", "2.mp4"]}))
    (one,) = read_samples(listed)
    assert (one.prompt, [file.name for file in one.files]) == ("a cat", ["1.mp4", "2.mp4"])
    assert (one.size, one.fps, one.policy) == (None, None, "")
    listed.write_text(json.dumps({"prompt": "a", "videos": ["1.mp4"], "size": [8, 16], "fps": 12.5, "policy": "p"}))
    (one,) = read_samples(listed)
    assert (one.size, one.fps, one.policy) == ((8, 16), 12.5, "p")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, '"videos" is missing'),
        ({"prompt": "", "videos": ["1.mp4"]}, '"prompt" is missing'),
        ({"prompt": 3, "videos": ["1.mp4"]}, '"prompt" is 3, expected text'),
        ({"prompt": "a", "videos": "1.mp4"}, "\"videos\" is '1.mp4', expected a list"),
        ({"prompt": "a", "videos": ["1.mp4", "9.mp4"]}, r'"videos" names .*9\.mp4, which does not exist'),
        ({"prompt": "a", "videos": ["1.mp4"], "size": [0, 3]}, r'"size" is \[0, 3\]'),
        ({"prompt": "a", "videos": ["1.mp4"], "fps": 0}, '"fps" is 0'),
    ],
)
def test_lists_of_samples_that_are_none(folder, row, message):
    listed = folder("1.mp4") / "samples.jsonl"
    listed.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=rf"samples\.jsonl, line 1: {message}"):
        read_samples(listed)


def test_lists_by_their_former_name_and_key_are_read(folder):
    listed = folder("1.mp4", "2.mp4") / "takes.jsonl"
    listed.write_text(json.dumps({"prompt": "a cat", "takes": ["1.mp4", "2.mp4"]}))
    (one,) = read_folder(listed.parent)
    assert one == replace(read_samples(listed)[0], folder=str(listed.parent))
    assert [file.name for file in one.files] == ["1.mp4", "2.mp4"]
