import importlib
import json
import os
import sys

import pytest
import torch

from besttake.data.disk_space import BLOCK
from besttake.rewards import load_reward
from besttake.rewards.cache import CachedReward, identity
from besttake.rewards.checks import score_checked
from besttake.rewards.partial import PartialScore, scored_mask
from besttake.types import CriticCard, Score
from tests.processes import launch, results
from tests.tiny_critics import clipscore

PROMPTS = ["a ball", "a ring", "a square"]


def films(b=3, seed=0):
    return torch.rand(b, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Counting:
    """A critic that counts the videos it scores."""

    name, dimensions, differentiable = "counting", ("light", "first"), True
    card = CriticCard("", "", {"light": (-1.0, 1.0), "first": (-1.0, 1.0)})

    def __init__(self, silent_on=""):
        self.scored, self.silent_on = 0, silent_on

    def __call__(self, videos, prompts, fps=8.0):
        self.scored += len(videos)
        values = torch.stack([videos.mean((1, 2, 3, 4)), videos[:, 0, 0, 0, 0] / fps], 1)
        there = torch.tensor([prompt != self.silent_on for prompt in prompts])
        return Score(values, self.dimensions) if there.all() else PartialScore(values, self.dimensions, there)


def test_what_was_scored_is_not_scored_again_and_stays_the_same_to_the_last_bit(tmp_path):
    critic, videos = Counting(), films()
    first = score_checked(CachedReward(critic, tmp_path), videos, PROMPTS).values
    again = CachedReward(critic, tmp_path)
    assert torch.equal(score_checked(again, videos, PROMPTS).values, first)
    assert critic.scored == 3
    assert again.metrics() == {"counting/hits": 3.0, "counting/misses": 0.0}


def test_only_what_is_new_is_scored_and_rows_keep_their_order(tmp_path):
    critic, videos = Counting(), films(4)
    cached = CachedReward(critic, tmp_path)
    cached(videos[1:3], ["b", "c"])
    score = cached(videos, ["a", "b", "c", "d"])
    assert critic.scored == 4
    assert torch.equal(score.values, Counting()(videos, ["a", "b", "c", "d"]).values)


@pytest.mark.parametrize("what", ["pixel", "prompt", "fps", "critic", "weights", "shape"])
def test_whatever_may_change_a_score_is_part_of_the_key(tmp_path, what):
    critic, videos, prompts, fps = Counting(), films(1), ["a ball"], 8.0
    CachedReward(critic, tmp_path, critic_identity="one")(videos, prompts, fps)
    who = "one"
    if what == "pixel":
        videos[0, 1, 2, 3, 3] += 0.02
    elif what == "prompt":
        prompts = ["a ring"]
    elif what == "fps":
        fps = 16.0
    elif what == "critic":
        critic.name = "another"
    elif what == "weights":
        who = "two"
    else:
        videos = videos.transpose(1, 2).reshape(1, 1, 3, 8, 4)
    CachedReward(critic, tmp_path, critic_identity=who)(videos, prompts, fps)
    assert critic.scored == 2


def test_what_no_file_would_distinguish_is_one_video(tmp_path):
    critic = Counting()
    cached = CachedReward(critic, tmp_path)
    videos = torch.zeros(1, 2, 3, 4, 4)
    cached(videos, ["a ball"])
    cached(videos + 1e-4, ["a ball"])
    assert critic.scored == 1


def test_the_identity_of_a_critic_is_its_weights():
    one, other = load_reward("world"), load_reward("world")
    assert identity(one) == identity(other)
    network = next(part for part in vars(other).values() if isinstance(part, torch.nn.Module))
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    assert identity(one) != identity(other)
    assert identity(load_reward("world")) != identity(load_reward("heldout"))


def test_how_it_reads_a_clip_is_part_of_an_image_critics_identity(tmp_path):
    clipscore.write(tmp_path)
    settings = [{"frames": 4}, {"frames": 8}, {"frames": 8, "aggregate": "min"}, {"frames": 8, "aggregate": "min"}]
    identities = [identity(load_reward("clipscore", path=tmp_path, **setting)) for setting in settings]
    assert len(set(identities)) == 3
    assert identities[2] == identities[3]


class Set:
    """A critic with a setting of each kind, and a counter."""

    name, dimensions, differentiable, card = "set", ("light",), False, Counting.card

    def __init__(self, frames=8, path="", sides=(1, 2), device="cpu"):
        self.frames, self.path, self.sides, self.device, self.scored = frames, path, sides, device, 0
        self.mean, self.masks = torch.zeros(2), [torch.zeros(3, dtype=torch.bool)]
        self.tokenizer = FakeTokenizer()

    def __call__(self, videos, prompts, fps=8.0):
        self.scored += 1
        return Score(videos.mean((1, 2, 3, 4))[:, None], self.dimensions)


class FakeTokenizer:
    def __init__(self):
        self.vocabulary = {"ball": 0}

    def get_vocab(self):
        return self.vocabulary


def test_what_a_critic_was_made_with_and_of_is_its_identity_and_what_it_counts_is_not(tmp_path):
    (tmp_path / "weights").write_text("one")
    first = identity(Set())
    same = [Set(), Set(device="cuda:1")]
    same[0].scored = 5
    assert {identity(critic) for critic in same} == {first}
    others = [Set(frames=4), Set(sides=(1, 3)), *(Set() for _ in range(3)), Set(path=tmp_path / "weights")]
    others[2].mean[1] += 1e-3
    others[3].masks[0][1] = True
    others[4].tokenizer.vocabulary = {"ball": 1}
    identities = [identity(critic) for critic in others]
    assert len({first, *identities}) == 7
    (tmp_path / "weights").write_text("two")
    assert identity(others[-1]) != identities[-1]
    (tmp_path / "weights").rename(tmp_path / "moved").write_text("one")
    assert identity(Set(path=str(tmp_path / "moved"))) == identities[-1]


WRITTEN = """
class Critic:
    name, dimensions, card, differentiable = "own", ("light",), None, False
    def __call__(self, videos, prompts, fps=8.0): return {}
"""


def test_the_code_of_a_critic_is_part_of_its_identity(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_critic.py").write_text(WRITTEN.format(1))
    first = identity(importlib.import_module("own_critic").Critic())
    (tmp_path / "own_critic.py").write_text(WRITTEN.format(2))
    assert identity(sys.modules.pop("own_critic").Critic()) != first


def test_the_versions_of_what_computes_are_part_of_the_key(tmp_path, monkeypatch):
    critic, videos = Counting(), films(1)
    CachedReward(critic, tmp_path)(videos, ["a ball"])
    monkeypatch.setattr("besttake.rewards.cache.versions", lambda: {"torch": "0.1"})
    CachedReward(critic, tmp_path)(videos, ["a ball"])
    assert critic.scored == 2


def test_an_abstention_is_not_remembered(tmp_path):
    critic, videos = Counting(silent_on="a ring"), films()
    cached = CachedReward(critic, tmp_path)
    assert scored_mask(cached(videos, PROMPTS)).tolist() == [True, False, True]
    critic.silent_on = ""
    assert scored_mask(cached(videos, PROMPTS)).all()
    assert critic.scored == 4


def test_a_video_that_wants_a_gradient_is_scored_anew(tmp_path):
    critic, videos = Counting(), films().requires_grad_(True)
    cached = CachedReward(critic, tmp_path)
    cached(videos.detach(), PROMPTS)
    cached(videos, PROMPTS).values.sum().backward()
    assert videos.grad.any()
    assert cached.differentiable


def test_a_score_that_a_power_cut_left_half_is_computed_again(tmp_path):
    critic, videos = Counting(), films(1)
    CachedReward(critic, tmp_path)(videos, ["a ball"])
    (file,) = tmp_path.glob("*/*.json")
    for broken in ("", "[0.5, ", '{"a": 1}', "[0.5]", '[0.5, "x"]', "[NaN, 0.5]"):
        file.write_text(broken)
        assert CachedReward(critic, tmp_path)(videos, ["a ball"]).values.isfinite().all()
        assert len(json.loads(file.read_text())) == 2
    assert critic.scored == 7


def test_the_folder_stays_within_its_limit_and_what_was_used_last_stays(tmp_path):
    critic, most = Counting(), 20
    cached = CachedReward(critic, tmp_path, limit=most * BLOCK)
    videos = films(60)
    cached(videos[:1], ["a ball"])
    for i in range(1, 60):
        cached(videos[i : i + 1], ["a ball"])
        for age, file in enumerate(sorted(tmp_path.glob("*/*"), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(file, (age, age))  # no clock is fine enough for a test
        cached(videos[:1], ["a ball"])  # in use all the time
        assert len(list(tmp_path.glob("*/*"))) <= most
    assert critic.scored == 60
    cached(videos[59:], ["a ball"])
    assert critic.scored == 60


def test_what_another_process_is_writing_is_not_thrown_out(tmp_path):
    cached = CachedReward(Counting(), tmp_path, limit=BLOCK)
    cached(films(1), ["a ball"])
    part = next(tmp_path.glob("*")) / "tmp1234"
    part.write_text("[0.5")
    os.utime(part, (0, 0))
    cached._disk._left = 0
    cached(films(2), ["a ball"] * 2)
    assert part.read_text() == "[0.5"


def test_limits_and_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the limit of the score cache is 10 bytes"):
        CachedReward(Counting(), tmp_path, limit=10)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        CachedReward(Counting(), tmp_path / "file")


def score_many(folder):
    start = (0, 1, 20)[int(os.environ["RANK"])]
    torch.set_num_threads(1)
    cached = CachedReward(Counting(), folder, limit=24 * BLOCK)
    videos = films(40)
    good = True
    for i in range(160):
        k = (start + i) % 40
        good &= torch.equal(cached(videos[k : k + 1], ["a"]).values, Counting()(videos[k : k + 1], ["a"]).values)
    return good


def test_several_processes_share_a_folder(tmp_path):
    assert results(launch(3, score_many, tmp_path)) == [True] * 3
    assert not [path for path in tmp_path.glob("*/*") if path.suffix != ".json"]
