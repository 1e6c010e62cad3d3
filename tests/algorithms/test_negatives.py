import hashlib
import logging

import pytest
import torch
from PIL import Image

from besttake.algorithms.negatives import NegativeSamples
from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.types import Prompt

CAPTIONS = ["a red ball", "a blue ball", "a green ball"]


@pytest.fixture
def policy(cogvideox):
    return Policy(cogvideox, PolicyConfig(rank=2))


@pytest.fixture
def negatives(policy, tmp_path):
    return NegativeSamples(policy, CAPTIONS, RolloutConfig(steps=1), 2, 5, tmp_path)


def files(negatives):
    return sorted(path.name for path in negatives.folder.iterdir())


def named(clip, step):
    return f"{hashlib.sha256(CAPTIONS[clip].encode()).hexdigest()[:16]}-{step:08d}.safetensors"


def disturb(policy):
    for weight in policy.trainable.values():
        weight.data += 0.1


def test_negatives_are_the_policys_own_samples_of_the_captions_keyed_on_seed_and_step(negatives, policy):
    found = negatives.of([2, 0], 3, 50)
    rollout = generate(policy, [CAPTIONS[2], CAPTIONS[0]], negatives.config, n=2, seed=(5, 3), decode=False)
    assert torch.equal(found, rollout.latents.unflatten(0, (2, 2)))
    assert files(negatives) == sorted(named(i, 3) for i in (0, 2))


def test_negatives_are_kept_until_the_interval_is_over_and_then_made_by_the_policy_as_it_is(negatives, policy):
    first = negatives.of([1], 48, 50)
    disturb(policy)
    assert torch.equal(negatives.of([1], 49, 50), first)
    regenerated = negatives.of([1], 50, 50)
    assert not torch.allclose(regenerated, first, atol=1e-3)
    assert torch.equal(negatives.of([1], 99, 50), regenerated)


def test_made_once_means_all_at_first_and_never_again(negatives, policy):
    first = negatives.of([1], 0, 0)
    assert len(files(negatives)) == 3
    disturb(policy)
    assert torch.equal(negatives.of([1], 500, 0), first)
    assert len(files(negatives)) == 3


def test_a_run_that_goes_back_a_few_steps_does_not_see_negatives_of_later_ones(negatives, policy):
    negatives.of([1], 55, 50)
    again = negatives.of([1], 52, 50)
    assert files(negatives) == [named(1, 52), named(1, 55)]
    assert torch.equal(negatives.of([1], 53, 50), again)


def test_a_file_cut_short_is_made_anew_and_said(negatives, caplog):
    first = negatives.of([0], 0, 50)
    path = next(negatives.folder.iterdir())
    path.write_bytes(path.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(negatives.of([0], 0, 50), first)
    assert f"{path} are damaged" in caplog.text


def test_lost_negatives_that_were_made_once_are_said_to_be_lost(negatives, caplog):
    negatives.of([1], 0, 0)
    next(negatives.folder.iterdir()).unlink()
    with caplog.at_level(logging.WARNING):
        negatives.of([1], 7, 0)
    assert "1 samples from before training are missing" in caplog.text


def test_negatives_that_no_run_comes_back_to_are_deleted(negatives):
    negatives.of([1], 0, 10)
    negatives.of([1], 10, 10)
    negatives.of([1], 20, 10)
    negatives.delete(before=10)
    assert files(negatives) == [named(1, 10), named(1, 20)]


def test_a_clip_that_comes_twice_is_sampled_once(negatives):
    found = negatives.of([1, 1], 0, 50)
    assert torch.equal(found[0], found[1])
    assert len(files(negatives)) == 1


def test_a_kill_leaves_nothing_that_a_resumed_run_trips_over(negatives):
    whole = negatives.of([0, 2], 4, 50)
    (negatives.folder / named(2, 4)).unlink()  # killed between the two files of a batch
    (negatives.folder / f".{named(2, 4)}.4242.tmp").write_bytes(b"half")
    assert torch.equal(negatives.of([0, 2], 4, 50), whole)
    negatives.delete(before=3)
    assert {named(0, 4), named(2, 4)} <= set(files(negatives))


def test_negatives_of_first_frames_are_known_by_what_they_show(policy, tmp_path):
    def name(colour, file, text="a ball"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / file)
        return NegativeSamples(
            policy, [Prompt(text, tmp_path / file)], RolloutConfig(), 1, 0, tmp_path / "negatives"
        ).names[0]

    first = name("red", "a.png")
    assert name("red", "b.png") == first
    assert len({first, name("blue", "a.png"), name("red", "a.png", "a ring")}) == 3


def test_files_of_a_kill_are_removed_when_the_run_goes_on(negatives):
    (negatives.folder / ".half.4242.tmp").write_bytes(b"half")
    NegativeSamples(negatives.policy, CAPTIONS, negatives.config, 2, 5, negatives.folder)
    assert files(negatives) == []


def test_negatives_that_vanish_are_made_again(negatives, caplog):
    first, load = negatives.of([1], 0, 50), negatives._load

    def too_late(path):
        path.unlink(missing_ok=True)
        negatives._load = load
        return load(path)

    negatives._load = too_late
    assert torch.equal(negatives.of([1], 0, 50), first)
    assert "are damaged; regenerating them" in caplog.text
