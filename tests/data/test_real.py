"""Real clips: bad ones are named or skipped, the others are read at the wanted rate and size, and cached."""

import logging

import pytest
import torch

from besttake.data.cache import TensorCache
from besttake.data.real import find_clips, load_real


def test_all_bad_videos_are_named_at_once_and_skipped_only_on_request(tmp_path, clips, caplog):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video" * 99)
    (tmp_path / "cut.avi").write_bytes((tmp_path / "two.avi").read_bytes()[:-3000])
    names = ["empty.mp4", "one.mp4", "lost.mp4", "text.mp4", "cut.avi"]
    (tmp_path / "prompt.txt").write_text("a\n" * 5)
    (tmp_path / "video.txt").write_text("\n".join(names))
    with pytest.raises(ValueError, match=r"4 of 5 clips of .* cannot be used") as caught:
        find_clips(tmp_path)
    bad = [name for name in names if name != "one.mp4"]
    assert all(name in str(caught.value) for name in bad)
    assert "/one.mp4" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert [clip.path.name for clip in find_clips(tmp_path, skip_bad=True)] == ["one.mp4"]
    assert [name for record in caplog.records for name in names if name in record.getMessage()] == bad


def test_skipping_must_leave_something(tmp_path):
    (tmp_path / "prompt.txt").write_text("a\n")
    (tmp_path / "video.txt").write_text("gone.mp4\n")
    with pytest.raises(ValueError, match=r"gone\.mp4 is not a file\nNone is left"):
        find_clips(tmp_path, skip_bad=True)


def test_load_real(clips, numbers):
    kept, videos = load_real(clips, lambda video: video, fps=8, frames=8, size=(16, 16))
    assert kept == clips
    assert videos.shape == (2, 8, 3, 16, 16)
    assert videos.dtype == torch.float32
    assert numbers(videos[0]) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert numbers(videos[1]) == [0, 1, 2, 3, 5, 6, 7, 8]


def test_load_real_names_every_short_clip(clips):
    with pytest.raises(ValueError, match=r"1 of 2 clips cannot be used:\n .*one\.mp4 is too short") as caught:
        load_real(clips, torch.mean, fps=8, frames=12, size=(16, 16))
    assert "two.avi" not in str(caught.value)
    with pytest.raises(ValueError, match=r"2 of 2 clips .*\n .*one\.mp4 .*\n .*two\.avi"):
        load_real(clips, torch.mean, fps=8, frames=99, size=(16, 16), skip_bad=True)


def test_load_real_skips_what_is_too_short_on_request(clips, caplog):
    with caplog.at_level(logging.WARNING):
        kept, videos = load_real(clips, lambda video: video, fps=8, frames=12, size=(16, 16), skip_bad=True)
    assert [clip.path.name for clip in kept] == ["two.avi"]
    assert videos.shape == (1, 12, 3, 16, 16)
    assert "one.mp4 is too short" in caplog.text


def test_load_real_keeps_what_was_made_of_a_clip_for_whoever_makes_the_same(clips, tmp_path):
    cache, encoded = TensorCache(tmp_path / "cache"), []

    def encode(video):
        encoded.append(video)
        return video * 2

    settings = {"fps": 8, "frames": 8, "size": (16, 16), "cache": cache}
    _, first = load_real(clips, encode, **settings, encoder="a")
    _, again = load_real(clips, encode, **settings, encoder="a")
    assert len(encoded) == 2
    assert torch.equal(first, again)
    load_real(clips, encode, **settings, encoder="b")
    assert len(encoded) == 4
    load_real(clips, encode, **settings | {"size": (8, 8)}, encoder="a")
    assert len(encoded) == 6
    clips[0].path.write_bytes(clips[1].path.read_bytes())  # other footage under the same name
    load_real(clips, encode, **settings, encoder="a")
    assert len(encoded) == 6  # but known from the other clip
