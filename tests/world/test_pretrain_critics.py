import json
from copy import deepcopy

import numpy as np
import pytest
import torch

from besttake.rewards import load_reward
from besttake.world.captions import Body, Caption
from besttake.world.film import make_film, render
from besttake.world.pretrain_critics import (
    HeldoutCriticConfig,
    WorldCriticConfig,
    _train,
    add_any_flaws,
    body_positions,
    codec_like,
    distance,
    graded_batch,
    path_length,
    qualities,
    ranking_loss,
    train_heldout_critic,
    train_world_critic,
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
    visual, temporal, dynamic, text, factual = qualities(
        {"blur": 0.5, "melt": 0.2}, motion_left=0.6, swaps=1, distance_to_path=1.5
    )
    assert [visual, temporal, dynamic, text, factual] == pytest.approx([-0.7, -0.14, -0.4, -1.2, -0.6])
    assert qualities({}, 1.0, 0, 0.0) == [0, 0, 0, 0, 0]
    assert qualities({}, 1.0, 0, 99.0)[-1] == -2


def test_distance_to_the_true_path_by_hand():
    film = make_film(RING, np.random.default_rng(0))
    (actor,) = film.actors
    true = deepcopy(film)
    assert distance(film, true) == 0
    actor.position = actor.position + np.array([3.0, 4.0])
    assert distance(film, true) == pytest.approx(5)
    actor.position = true.actors[0].position
    actor.angle = true.actors[0].angle + 2 / 4.5  # two pixels at the radius of a small body
    assert distance(film, true) == pytest.approx(2)


def test_places_are_where_the_colour_is():
    film = make_film(RING, np.random.default_rng(0))
    film.actors[0].opacity[3:] = 0
    found = body_positions(film)
    assert found.shape == (16, 2, 2)
    assert found[3:].isnan().all()
    assert torch.equal(found[:3, 0], found[:3, 1])
    colour = render(film)[:3].std(1)  # saturation; (3, h, w)
    centre = (colour * torch.linspace(-31 / 32, 31 / 32, 32)).sum((1, 2)) / colour.sum((1, 2))
    assert torch.allclose(found[:3, 0, 0], centre, atol=0.02)


def test_frozen_film_has_lost_the_motion_that_is_measured():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        film = make_film(RING, rng)
        due = path_length(film)
        severities, moved = add_any_flaws(film, rng)
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
    assert one.prompt_captions[0] == one.prompt_captions[2] != one.prompt_captions[3]


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
    config = WorldCriticConfig(tmp_path / "a", tmp_path / "a-weights", steps=2, groups=1, candidates=2, calibration=8)
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
