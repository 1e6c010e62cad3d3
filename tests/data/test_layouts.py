"""The layouts in which captioned clips are kept, read from real folders and tables."""

import json
from pathlib import Path

import pytest

from besttake.data.real import find_clips


def lines(folder, captions="the first, clip\nthe second clip\n", videos="one.mp4\ntwo.avi\n"):
    (folder / "prompt.txt").write_text(captions)
    (folder / "video.txt").write_text(videos)


def beside(folder, one="the first, clip", two="the second\nclip\n"):
    (folder / "one.txt").write_text(one)
    (folder / "two.txt").write_text(two)


def jsonl(folder, *rows, name="clips.jsonl"):
    rows = rows or ({"path": "one.mp4", "text": "the first, clip"}, {"path": "two.avi", "text": "the second clip"})
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))


def test_line_by_line(tmp_path, clips):
    lines(tmp_path)
    assert find_clips(tmp_path) == clips


def test_a_text_beside_each_video(tmp_path, clips):
    beside(tmp_path)
    assert find_clips(tmp_path) == clips


@pytest.mark.parametrize("path", ["path", "video", "file", "file_name"])
@pytest.mark.parametrize("caption", ["caption", "prompt", "text"])
def test_csv(tmp_path, clips, path, caption):
    table = f'id,{path},{caption}\n1,one.mp4,"the first, clip"\n2,{tmp_path}/two.avi,the second clip\n'
    (tmp_path / "metadata.csv").write_text("\ufeff" + table, encoding="utf-8")
    assert find_clips(tmp_path) == clips
    assert find_clips(tmp_path / "metadata.csv") == clips


def test_json_lines(tmp_path, clips):
    jsonl(tmp_path)
    assert find_clips(tmp_path) == clips


def test_parquet(tmp_path, clips):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"video": ["one.mp4", "two.avi"], "caption": [clip.caption for clip in clips]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "clips.parquet")
    assert find_clips(tmp_path) == clips
    (tmp_path / "clips.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"clips\.parquet cannot be read as parquet"):
        find_clips(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "clips.parquet").touch()
    with pytest.raises(ValueError, match=r"needs pyarrow.*besttake\[parquet\]"):
        find_clips(tmp_path)


def test_no_folder_or_nothing_in_it(tmp_path):
    with pytest.raises(ValueError, match=r"gone does not exist; expected a folder of clips or a table"):
        find_clips(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"is empty; expected prompt\.txt \+ video\.txt"):
        find_clips(tmp_path)
    (tmp_path / "notes.md").touch()
    with pytest.raises(ValueError, match=r"has no captioned clips"):
        find_clips(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.md: expected a folder of clips or a table \(\.csv"):
        find_clips(tmp_path / "notes.md")


@pytest.mark.parametrize("layouts", [(lines, beside), (lines, jsonl), (beside, jsonl)])
def test_several_layouts_are_ambiguous(tmp_path, clips, layouts):
    for write in layouts:
        write(tmp_path)
    with pytest.raises(ValueError, match="has several layouts"):
        find_clips(tmp_path)


def test_several_tables_are_ambiguous_until_one_is_named(tmp_path, clips):
    jsonl(tmp_path)
    jsonl(tmp_path, name="more.jsonl")
    with pytest.raises(ValueError, match=r"several layouts \(clips\.jsonl; more\.jsonl\)"):
        find_clips(tmp_path)
    assert find_clips(tmp_path / "more.jsonl") == clips


@pytest.mark.parametrize("caption", ["prompt.txt", "prompts.txt", "captions.txt", "Prompts.TXT"])
@pytest.mark.parametrize("video", ["video.txt", "videos.txt"])
def test_line_by_line_under_other_names(tmp_path, clips, caption, video):
    (tmp_path / caption).write_bytes("\ufeffthe first, clip\r\nthe second clip\r\n\r\n".encode())
    (tmp_path / video).write_bytes(b"one.mp4\r\ntwo.avi\r\n")
    assert find_clips(tmp_path) == clips


def test_the_same_under_two_names_is_ambiguous(tmp_path, clips):
    lines(tmp_path)
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"has prompt\.txt and prompts\.txt; keep one"):
        find_clips(tmp_path)


def test_tables_of_other_trainers(tmp_path, clips):
    rows = [{"one.mp4": "the first, clip"}, {"two.avi": "the second clip"}]
    flat = [pair for row in rows for pair in row.items()]
    tables = {  # VideoX-Fun, musubi-tuner, datasets' VideoFolder, DiffSynth, Excel
        "metadata.json": json.dumps([{"file_path": path, "text": text, "type": "video"} for path, text in flat]),
        "musubi.jsonl": "\n".join(json.dumps({"video_path": str(tmp_path / p), "caption": t}) for p, t in flat),
        "metadata.jsonl": "\r\n".join(json.dumps({"file_name": path, "text": text, "fps": 8}) for path, text in flat),
        "metadata.csv": "".join(f'{path},"{text}"\n' for path, text in [("video", "prompt"), *flat]),
        "clips.TSV": "".join(f"{path}\t{text}\r\n" for path, text in [("Path ", "Caption"), *flat]) + "\r\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        assert find_clips(tmp_path) == clips
        (tmp_path / name).unlink()


def test_a_quoted_caption_may_go_over_lines_but_must_end(tmp_path, clips):
    (tmp_path / "metadata.csv").write_text('path,caption\none.mp4, "the first,\nclip"\ntwo.avi,the second clip\n')
    assert find_clips(tmp_path) == clips
    (tmp_path / "metadata.csv").write_text('path,caption\none.mp4,"the first\ntwo.avi,the second clip\n')
    with pytest.raises(ValueError, match=r"metadata\.csv, line 3, cannot be read as a table"):
        find_clips(tmp_path)


def test_rows_without_a_clip_are_named_together_and_skipped_on_request(tmp_path, clips, caplog):
    rows = [
        {"file_path": "one.mp4", "text": "the first, clip", "type": "video"},
        {"file_path": "x.png", "text": "a picture", "type": "image"},
        {"file_path": "", "text": "nothing", "type": "video"},
        {"file_path": "two.avi", "text": ["the second clip"], "type": "video"},
    ]
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    with pytest.raises(
        ValueError, match=r"(?s)3 of 4 clips of .*row 2: x\.png is an image.*row 3.*row 4: text is list"
    ) as e:
        find_clips(tmp_path)
    assert str(e.value).count("\n") == 4
    assert find_clips(tmp_path, skip_bad=True) == clips[:1]
    assert len(caplog.records) == 1


def test_a_json_that_lists_nothing_is_no_table(tmp_path, clips):
    beside(tmp_path)
    (tmp_path / "dataset_info.json").write_text('{"fps": 8}')
    (tmp_path / "one.json").write_text("[1, 2]")
    assert find_clips(tmp_path) == clips
    with pytest.raises(ValueError, match=r"dataset_info\.json: expected a list of objects"):
        find_clips(tmp_path / "dataset_info.json")
    (tmp_path / "rows.json").write_text('{"path": "one.mp4"}\n{"path": "two.avi"}')
    with pytest.raises(ValueError, match=r"rows\.json: not JSON .*name it \.jsonl if it has one object per line"):
        find_clips(tmp_path / "rows.json")


@pytest.mark.parametrize(
    "name", ["README.txt", "readme.TXT", "LICENSE.txt", "LICENCE-CC-BY.txt", "notes.txt", "read_me.txt"]
)
def test_notes_beside_clips_are_no_captions(tmp_path, clips, name):
    beside(tmp_path)
    (tmp_path / name).write_text("where the clips are from")
    assert find_clips(tmp_path) == clips


def test_a_clip_may_have_the_name_of_a_note(tmp_path, clips):
    (tmp_path / "two.avi").rename(tmp_path / "notes.avi")
    (tmp_path / "one.txt").write_text("the first, clip")
    (tmp_path / "notes.txt").write_text("musical notes")
    assert [clip.caption for clip in find_clips(tmp_path)] == ["musical notes", "the first, clip"]


def test_clips_in_folders_below(tmp_path, clips):
    for name in ("one.mp4", "two.avi"):
        below = tmp_path / "set" / Path(name).stem
        below.mkdir(parents=True)
        (tmp_path / name).rename(below / Path(name).with_suffix(Path(name).suffix.upper()).name)
        (below / f"{Path(name).stem}.txt").write_text("a clip")
    (tmp_path / "set" / "README.txt").touch()
    hidden = tmp_path / "set" / ".cache"
    hidden.mkdir()
    (hidden / "lost.txt").touch()
    assert [clip.path.name for clip in find_clips(tmp_path / "set")] == ["one.MP4", "two.AVI"]
    jsonl(tmp_path / "set" / "one", {"path": "one.MP4", "text": "x"})
    with pytest.raises(
        ValueError, match=r"no captioned clips \(there is one/clips\.jsonl\).*give the path of the folder or table"
    ):
        find_clips(tmp_path / "set")


def test_paths_of_windows(tmp_path, clips):
    (tmp_path / "a").mkdir()
    (tmp_path / "one.mp4").rename(tmp_path / "a" / "one.mp4")
    jsonl(tmp_path, {"path": "a\\one.mp4", "text": "x"})
    assert find_clips(tmp_path)[0].path == tmp_path / "a" / "one.mp4"


def test_a_file_of_almost_that_name_is_named(tmp_path, clips):
    jsonl(tmp_path, {"path": "one.MP4", "text": "x"}, {"path": "Two.mp4", "text": "x"})
    with pytest.raises(
        ValueError, match=r"one\.MP4 is not a file; there is .*one\.mp4\n.*Two\.mp4 .* there is .*two\.avi"
    ):
        find_clips(tmp_path)


def test_half_a_layout(tmp_path, clips):
    (tmp_path / "prompt.txt").write_text("a ball\n")
    with pytest.raises(ValueError, match=r"has prompt\.txt, but no video\.txt or videos\.txt beside it$"):
        find_clips(tmp_path)


def test_half_a_layout_names_what_is_there(tmp_path, clips):
    (tmp_path / "prompts.txt").write_text("a ball\na box\n")
    (tmp_path / "vids.txt").write_text("one.mp4\ntwo.avi\n")
    with pytest.raises(ValueError, match=r"has prompts\.txt, but no video\.txt .*\(there is vids\.txt: rename it"):
        find_clips(tmp_path)


def test_line_counts_differ(tmp_path, clips):
    lines(tmp_path, captions="only one\n")
    with pytest.raises(ValueError, match=r"prompt\.txt has 1 lines, video\.txt has 2"):
        find_clips(tmp_path, skip_bad=True)


def test_a_line_without_a_path(tmp_path, clips):
    lines(tmp_path, videos="\ntwo.avi\n")
    with pytest.raises(ValueError, match=r"line 1 of prompt\.txt \+ video\.txt has no path"):
        find_clips(tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "has no rows"),
        ("path,caption\n", "has no rows"),
        ("where,caption\none.mp4,x\n", "has the columns where, caption; expected exactly one of path, video"),
        ("path,label\none.mp4,x\n", "has the columns path, label; expected exactly one of caption, prompt"),
        ("path,caption,text\none.mp4,x,y\n", "expected exactly one of caption, prompt, text"),
        ("path,caption\none.mp4,the first, clip\n", "row 1: more cells than columns"),
        ("path,caption\none.mp4,x\n,y\n", r"row 2 of metadata\.csv has no path"),
    ],
)
def test_bad_tables(tmp_path, clips, table, message):
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        find_clips(tmp_path)


def test_a_caption_must_be_text(tmp_path, clips):
    jsonl(tmp_path, {"path": "one.mp4", "text": "x"}, {"path": "two.avi", "text": 3})
    with pytest.raises(ValueError, match=r"clips\.jsonl, row 2: text is int, expected text"):
        find_clips(tmp_path)


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (lambda folder: lines(folder, captions="\nthe second clip\n"), r"line 1 of prompt\.txt"),
        (lambda folder: beside(folder, one=" \n"), r"one\.txt is missing or empty"),
        (lambda folder: (folder / "two.txt").write_text("the second clip"), r"one\.txt is missing or empty"),
        (lambda folder: jsonl(folder, {"path": "one.mp4", "text": ""}, {"path": "two.avi", "text": "x"}), r"row 1 of"),
        (lambda folder: jsonl(folder, {"path": "one.mp4"}, {"path": "two.avi", "text": "x"}), r"row 1 of clips\.jsonl"),
    ],
)
def test_a_clip_without_a_caption_is_named(tmp_path, clips, write, place):
    write(tmp_path)
    with pytest.raises(ValueError, match=rf"1 of 2 clips .*\n .*one\.mp4 has no caption \({place}"):
        find_clips(tmp_path)
    assert [clip.path.name for clip in find_clips(tmp_path, skip_bad=True)] == ["two.avi"]


def test_a_caption_without_a_video_is_named(tmp_path, clips):
    beside(tmp_path)
    (tmp_path / "three.txt").write_text("the third clip")
    with pytest.raises(ValueError, match=r"no video beside three\.txt"):
        find_clips(tmp_path)
