"""Clips and pairs that a model cannot be given: all named before any is encoded, skipped on request."""

from types import SimpleNamespace

import pytest
import torch

from besttake.algorithms import realdpo, sft
from besttake.algorithms.offline_dpo import Config, encode_pairs
from besttake.algorithms.real_clips import ClipBatch, drop_captions, encode_clips
from besttake.data.pairs import PreferencePair
from besttake.data.real import find_clips
from besttake.data.video import write_video
from besttake.models.policy import Policy, PolicyConfig
from besttake.runtime.configuration import fingerprint
from besttake.sampling.rollout import RolloutConfig

LONG = "a ball " * 500
ROLLOUT = RolloutConfig(frames=5, height=16, width=16)


@pytest.fixture
def run(cogvideox):
    """As much of a run as encoding needs; `encoded` counts the clips."""

    def encode(videos):
        run.encoded += len(videos)
        return videos.mean((1, 3, 4), keepdim=True)

    run = SimpleNamespace(model=cogvideox, encode=encode, encoded=0)
    return run


@pytest.fixture
def folder(tmp_path):
    """Four clips of a second, of which the second has a long caption, and a third that is too short."""
    for i, (caption, frames) in enumerate([("a ball", 8), (LONG, 8), ("a box", 2), ("a bear", 8)]):
        write_video(tmp_path / f"{i}.mp4", torch.full((frames, 3, 16, 16), i / 4), 8)
        (tmp_path / f"{i}.txt").write_text(caption)
    return tmp_path


def test_every_clip_that_cannot_be_used_is_named_before_any_is_encoded(run, folder):
    with pytest.raises(ValueError, match=r"2 of 4 clips cannot be used") as caught:
        encode_clips(run, find_clips(folder), ROLLOUT)
    _, long, short, advice = str(caught.value).split("\n")
    assert "1.mp4: the prompt 'a ball" in long
    assert "tokens" in long
    assert "2.mp4 is too short: it lasts 0.250 s and has 2 of 5 frames at 8 fps" in short
    assert "skip_bad" in advice
    assert run.encoded == 0


def test_they_are_skipped_on_request(run, folder, caplog):
    found = encode_clips(run, find_clips(folder), ROLLOUT, skip_bad=True)
    assert found.captions == ["a ball", "a bear"]
    assert found.clips.flatten(1).mean(1) == pytest.approx([0, 0.75], abs=0.02)
    assert sum("skipped" in message for message in caplog.messages) == 1


def test_the_same_of_pairs(run, folder, caplog):
    clips = [folder / f"{i}.mp4" for i in range(4)]
    (folder / "cut.mp4").write_bytes(clips[0].read_bytes()[:300])
    pairs = [
        PreferencePair("a ball", clips[0], [clips[3]]),
        PreferencePair(LONG, clips[1], [clips[0]]),
        PreferencePair("a box", clips[0], [clips[2]]),
        PreferencePair("a bear", folder / "cut.mp4", [clips[3]]),
    ]
    with pytest.raises(ValueError, match=r"3 of 4 pairs of pairs\.jsonl cannot be used") as caught:
        encode_pairs(run, pairs, Config(rollout=ROLLOUT))
    for name in ("1.mp4: the prompt", "2.mp4 is too short", "cut.mp4 cannot be read"):
        assert name in str(caught.value)
    assert run.encoded == 0
    found = encode_pairs(run, pairs, Config(rollout=ROLLOUT, skip_bad=True))
    assert found.captions == [pairs[0].prompt]
    assert found.clips.flatten(2).mean(2)[0] == pytest.approx([0, 0.75], abs=0.02)
    assert sum("skipped" in message for message in caplog.messages) == 1


def test_a_share_of_the_captions_becomes_the_empty_prompt(cogvideox):
    condition = cogvideox.encode_prompts([f"a red ball {i}" for i in range(40)])
    empty = cogvideox.encode_negative(1, "")["text"][0]
    dropped = drop_captions(cogvideox, condition, 0.25, (0, 3))["text"]
    rows = [i for i in range(40) if torch.equal(dropped[i], empty)]
    assert 4 <= len(rows) <= 16
    assert all(torch.equal(dropped[i], condition["text"][i]) for i in range(40) if i not in rows)
    assert torch.equal(dropped, drop_captions(cogvideox, condition, 0.25, (0, 3))["text"])
    assert not torch.equal(dropped, drop_captions(cogvideox, condition, 0.25, (0, 4))["text"])


def test_without_dropout_the_condition_is_as_it_was(cogvideox):
    condition = cogvideox.encode_prompts(["a red ball"])
    assert drop_captions(cogvideox, condition, 0.0, (0, 0)) is condition


@pytest.mark.parametrize("algorithm", [sft, realdpo], ids=["sft", "realdpo"])
def test_dropout_changes_the_loss_through_captions_alone(cogvideox, algorithm):
    policy, key = Policy(cogvideox, PolicyConfig(rank=2)), (0, 5)
    clips = torch.randn(4, 2 if algorithm is realdpo else 1, *cogvideox.latent_shape(*cogvideox.default_size()))
    batch, share = ClipBatch([f"a red ball {i}" for i in range(4)], clips), 0.5
    with torch.no_grad():
        dropped, _ = algorithm.step(policy, None, batch, algorithm.Config(caption_dropout=share), key)
        kept, _ = algorithm.step(policy, None, batch, algorithm.Config(), key)
        condition = cogvideox.encode_prompts(batch.captions)
        drop = lambda *_: drop_captions(cogvideox, condition, share, key)  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RolloutConfig, "condition", drop)
            by_hand, _ = algorithm.step(policy, None, batch, algorithm.Config(), key)
    assert torch.equal(dropped, by_hand), "noise and times are as without"
    if algorithm is sft:  # of RealDPO's losses, all are log 2 before the first update
        assert not torch.equal(dropped, kept)


def test_dropout_is_a_share(cogvideox):
    with pytest.raises(ValueError, match="caption_dropout is 1"):
        sft.Config(caption_dropout=1.0)
    assert fingerprint(sft.Config()) == fingerprint(sft.Config(rollout=RolloutConfig(negative_prompt=None)))
    assert fingerprint(sft.Config()) != fingerprint(sft.Config(caption_dropout=0.1))
