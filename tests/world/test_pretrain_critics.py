import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from besttake.rewards import load_reward
from besttake.world.captions import Body, Caption
from besttake.world.film import shoot
from besttake.world.pretrain_critics import (
    HeldoutCriticConfig,
    WorldCriticConfig,
    _train,
    codec_like,
    graded_batch,
    path_length,
    qualities,
    ranking_loss,
    spoil_any,
    train_heldout_critic,
    train_world_critic,
    vocabulary,
)

RING = Caption(Body("small", "red", "ring"), "floats", "dark")


def test_right_order_costs_less_than_wrong_order():
    targets = torch.tensor([[0.0], [-0.5], [-1.0], [-0.2]])
    right, wrong = ranking_loss(3 * targets, targets, 2), ranking_loss(-3 * targets, targets, 2)
    assert right < ranking_loss(0 * targets, targets, 2) < wrong


def test_equal_scores_cost_ln_two_twice():
    targets = torch.tensor([[0.0], [-0.5]])
    assert ranking_loss(0 * targets, 0 * targets, 2) == pytest.approx(2 * np.log(2))


def test_qualities_by_hand():
    visual, temporal, dynamic, text = qualities({"blur": 0.5, "melt": 0.2}, moved=0.6, swaps=1)
    assert [visual, temporal, dynamic, text] == pytest.approx([-0.7, -0.14, -0.4, -1.2])
    assert qualities({}, 1.0, 0) == [0, 0, 0, 0]


def test_frozen_film_has_lost_the_motion_that_is_measured():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        film = shoot(RING, rng)
        due = path_length(film)
        severities, moved = spoil_any(film, rng)
        if list(severities) == ["freeze"]:
            assert moved == pytest.approx(path_length(film) / due)
            assert moved < 1
            return
    raise AssertionError("no film was frozen")


def test_graded_batches_are_reproducible_and_differ_by_step():
    one, again, other = graded_batch(0, 3, 2, 3), graded_batch(0, 3, 2, 3), graded_batch(0, 4, 2, 3)
    assert torch.equal(one.videos, again.videos)
    assert not torch.equal(one.videos, other.videos)
    assert one.videos.shape == (6, 16, 3, 32, 32)
    assert one.asked[0] == one.asked[2] != one.asked[3]


def test_codec_keeps_the_picture():
    videos = graded_batch(0, 0, 2, 4).videos
    seen = codec_like(videos, 3)
    assert torch.equal(seen, codec_like(videos, 3))
    assert 0 < (seen - videos).abs().mean() < 0.05
    untouched = (seen == videos).flatten(1).all(1)
    assert untouched.any()
    assert not untouched.all()


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    def trained(folder, stop=None):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)

        def loss_of(step):
            if step == stop:
                raise KeyboardInterrupt
            return network(torch.full((2, 3), float(step % 5))).square().mean()

        _train(network, loss_of, WorldCriticConfig(tmp_path / folder, steps=60))
        return network.weight

    whole = trained("whole")
    with pytest.raises(KeyboardInterrupt):
        trained("cut", stop=55)  # saved at 50
    assert torch.equal(trained("cut"), whole)


def test_training_ships_the_weights(tmp_path):
    config = WorldCriticConfig(tmp_path / "a", tmp_path / "a-weights", steps=2, groups=1, takes=2, calibration=8)
    train_world_critic(config)
    critic = load_reward(tmp_path / "a-weights")
    assert critic.name == "world"
    assert critic(torch.zeros(1, 16, 3, 32, 32), ["a ball"]).values.isfinite().all()
    assert json.loads((tmp_path / "a-weights" / "loss_curve.json").read_text())[-1]["step"] == 2


def test_heldout_critic_trains_and_loads(tmp_path):
    train_heldout_critic(
        HeldoutCriticConfig(tmp_path / "h", tmp_path / "h-weights", steps=1, batch=2, frames=2, calibration=16)
    )
    critic = load_reward(tmp_path / "h-weights")
    videos = graded_batch(0, 0, 1, 4).videos
    assert critic(videos, ["a red ball falls to the ground on a dark background"] * 4).values.max() <= 0
    assert critic.features(videos, ["x"] * 4).shape == (4, 64)


def test_unknown_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="loss is 'hinge', expected one of ranking, regression"):
        train_world_critic(replace(WorldCriticConfig(tmp_path, tmp_path), loss="hinge"))


def test_vocabulary_covers_every_caption():
    assert set(str(RING).split()) <= set(vocabulary())
