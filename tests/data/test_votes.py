import json

import pytest

from besttake.data.votes import read_votes


@pytest.fixture
def folder(tmp_path):
    """A folder of four files that stand for videos: votes are read without opening them."""
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_bytes(b"video")
    return tmp_path


def written(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_a_group_has_a_best_candidate_or_several(folder):
    videos = ["a.mp4", "b.mp4", "c.mp4"]
    path = written(
        folder / "votes.jsonl",
        {"prompt": "a cat", "videos": videos, "best": 1},
        {"prompt": "a dog", "videos": videos, "best": [2, 0], "size": [32, 48], "policy": "tiny"},
    )
    one, several = read_votes(path)
    assert one.candidates == tuple(folder / video for video in videos)
    assert (one.prompt, one.best, one.size) == ("a cat", (1,), None)
    assert (several.best, several.size) == ((0, 2), (32, 48))


def test_a_vote_on_a_pair_is_a_vote_on_two_candidates(folder):
    pairs = [{"prompt": "a cat", "a": "a.mp4", "b": "b.mp4", "winner": winner} for winner in ("a", "b", "tie")]
    assert [vote.best for vote in read_votes(written(folder / "votes.jsonl", *pairs))] == [(0,), (1,), (0, 1)]


def test_all_bad_votes_are_named_at_once(folder):
    votes = ("a.mp4", "c"), ("a.mp4", "a"), ("gone.mp4", "b")
    pairs = [{"prompt": "a cat", "a": file, "b": "b.mp4", "winner": winner} for file, winner in votes]
    with pytest.raises(
        ValueError, match=r"(?s)2 of 3 votes .*line 1: \"winner\" is 'c'.*line 3: there is no video .*gone"
    ):
        read_votes(written(folder / "votes.jsonl", *pairs))
    rows = "a.mp4,b.mp4,a cat,C,B,same,8.0", "c.mp4,d.mp4,,B,B,A,8.0"
    with pytest.raises(ValueError, match=r"(?s)2 of 2 votes .*line 2: \"VQ\" is 'C'.*line 3: expected text under"):
        read_votes(written(folder / "votes.csv", TABLE, *rows), "VQ")


TABLE = "path_A,path_B,prompt,VQ,MQ,TA,fps_A"


def test_votes_of_videoalign_are_read_by_question(folder):
    rows = 'a.mp4,b.mp4,"a cat, asleep",A,B,same,8.0', "./c.mp4,d.mp4,a dog,B,B,A,8.0"
    path = written(folder / "votes.csv", TABLE, *rows)
    assert [vote.best for vote in read_votes(path, "VQ")] == [(0,), (1,)]
    assert [vote.best for vote in read_votes(path, "TA")] == [(0, 1), (0,)]
    assert read_votes(path, "MQ")[0].prompt == "a cat, asleep"
    with pytest.raises(ValueError, match="votes under VQ, MQ, TA; name one"):
        read_votes(path)
    with pytest.raises(ValueError, match="no votes under 'Beauty'; it has VQ, MQ, TA"):
        read_votes(path, "Beauty")


def test_all_in_all_is_what_videoalign_is_asked_by_default(folder):
    path = written(folder / "votes.csv", "path_A,path_B,prompt,VQ,Overall\na.mp4,b.mp4,a cat,A,B")
    assert read_votes(path)[0].best == (1,)


def videodpo(folder, *pairs, paths=("a.mp4", "b.mp4")):
    clips = [{"basic": {"clip_path": path}, "misc": {"frame_caption": ["a cat"]}} for path in paths]
    (folder / "metadata.json").write_text(json.dumps(clips))
    (folder / "pair.json").write_text(json.dumps(pairs))
    return folder


def test_of_videodpo_the_first_video_is_the_better(folder):
    pair = {"video1": 1, "video2": 0, "frame_caption": "a cat", "score": 0.4}
    both = read_votes(videodpo(folder, pair, pair | {"label": 1, "frame_caption": ["a cat"]}))
    assert [vote.candidates for vote in both] == [(folder / "b.mp4", folder / "a.mp4")] * 2
    assert [vote.best for vote in both] == [(0,), (1,)]
    assert {vote.prompt for vote in both} == {"a cat"}


def test_videodpo_paths_of_another_machine_are_found_by_folder_and_name(folder):
    (folder / "winvideos").mkdir()
    (folder / "winvideos" / "000001.mp4").write_bytes(b"video")
    pair = {"video1": 0, "video2": 1, "frame_caption": "a cat"}
    paths = ("/data/set/winvideos/000001.mp4", "b.mp4")
    vote = read_votes(videodpo(folder, pair, paths=paths) / "pair.json")[0]
    assert vote.candidates[0] == folder / "winvideos" / "000001.mp4"


GROUP = {"prompt": "a cat", "videos": ["a.mp4", "b.mp4"], "best": 0}
PAIR = {"prompt": "a cat", "a": "a.mp4", "b": "b.mp4", "winner": "a"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (GROUP | {"best": 2}, r'"best" is 2, expected an index from 0 to 1'),
        (GROUP | {"best": True}, r'"best" is True'),
        (GROUP | {"best": []}, r'"best" is \[\]'),
        (GROUP | {"videos": ["a.mp4"]}, "two video files or more"),
        (GROUP | {"videos": ["a.mp4", "./a.mp4"]}, "the same video is listed twice"),
        (GROUP | {"videos": ["a.mp4", "z.mp4"]}, r"there is no video .*z\.mp4"),
        (GROUP | {"videos": ["a.mp4", 3]}, "3 is not the path of a video"),
        (GROUP | {"prompt": " "}, 'expected text under "prompt"'),
        (GROUP | {"size": [32]}, r"expected \[height, width\]"),
        (PAIR | {"winner": ["a"]}, r"\"winner\" is \['a'\]"),
        (PAIR | {"winner": "A"}, "\"winner\" is 'A', expected one of a, b, tie"),
        ({"prompt": "a cat", "a": "a.mp4", "b": "b.mp4"}, '"winner" is None'),
        ({"prompt": "a cat"}, 'expected "videos" and "best", or "a", "b" and "winner"'),
        ("{", "not JSON"),
    ],
)
def test_a_bad_line_is_named(folder, row, complaint):
    with pytest.raises(ValueError, match=complaint) as raised:
        read_votes(written(folder / "votes.jsonl", GROUP, "", row))
    assert f"{folder / 'votes.jsonl'}, line 3: " in str(raised.value)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("a.mp4,b.mp4,a cat,C", "line 3: \"VQ\" is 'C', expected one of A, B, same"),
        ("a.mp4,b.mp4,a cat,", "line 3: \"VQ\" is '', expected"),
        ("a.mp4,b.mp4,a cat", 'line 3: "VQ" is None, expected'),
        ("a.mp4,z.mp4,a cat,B", r"line 3: there is no video .*z\.mp4"),
    ],
)
def test_a_bad_row_of_videoalign_is_named(folder, row, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_votes(written(folder / "votes.csv", "path_A,path_B,prompt,VQ\na.mp4,b.mp4,a cat,A", row))


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        ({"video1": 0, "video2": 2, "frame_caption": "a cat"}, 'pair 1: "video2" is 2, expected an index into'),
        ({"video1": 0, "video2": 1, "frame_caption": "a cat", "label": "x"}, "pair 1: \"label\" is 'x'"),
        ({"video1": 0, "video2": 1}, 'pair 1: expected text under "prompt"'),
        ([0, 1], "pair 1: expected an object"),
    ],
)
def test_a_bad_pair_of_videodpo_is_named(folder, pair, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_votes(videodpo(folder, pair))


def test_files_without_votes_are_refused(folder):
    for name, text in (("votes.jsonl", ""), ("votes.csv", "path_A,path_B,prompt,VQ\n")):
        with pytest.raises(ValueError, match="has no votes"):
            read_votes(written(folder / name, text))
    with pytest.raises(ValueError, match="has no votes"):
        read_votes(videodpo(folder))
    with pytest.raises(ValueError, match="path_A is missing"):
        read_votes(written(folder / "other.csv", "path,prompt\na.mp4,a cat"))
    with pytest.raises(ValueError, match="expected votes as"):
        read_votes(folder / "a.mp4")
    with pytest.raises(ValueError, match="is not a file"):
        read_votes(folder / "none.jsonl")
    with pytest.raises(ValueError, match=r"leave out question .VQ."):
        read_votes(written(folder / "votes.jsonl", GROUP), "VQ")
