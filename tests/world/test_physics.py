import numpy as np
import pytest

from besttake.world.captions import SIZES, Body, Caption, every_caption
from besttake.world.physics import (
    DIALS,
    FLOOR,
    FRAMES,
    GRAVITY,
    PIVOT,
    WIDTH,
    extent,
    half_height,
    simulate,
    true_tracks,
)


def track(motion, shape="ball", size="small", seed=0, other=None):
    caption = Caption(Body(size, "red", shape), motion, "dark", other)
    return simulate(caption, np.random.default_rng(seed))


def test_every_motion_keeps_every_body_in_the_frame():
    rng = np.random.default_rng(1)
    for caption in every_caption():
        if (caption.body.colour, caption.background) == ("red", "dark"):
            dials = rng.random((200, DIALS[caption.motion.split()[0]]))
            found = true_tracks(caption.motion, dials, extent((caption.body,))[None].repeat(200, 0))
            assert found.shape == (200, 1, FRAMES, 2)
            assert 0 <= found.min() <= found.max() <= WIDTH
            assert caption.motion == "swings" or found[..., 1].max() <= FLOOR - 0.7 * SIZES[caption.body.size] + 1e-6


def test_a_track_has_a_place_and_an_angle_for_every_frame():
    (spinning,) = track("spins")
    assert spinning.position.shape == (FRAMES, 2)
    assert spinning.angle.shape == (FRAMES,)
    assert np.ptp(np.diff(spinning.angle)) < 1e-9 < abs(spinning.angle[1] - spinning.angle[0])


def test_free_fall_accelerates_by_gravity_until_it_lands():
    y = track("falls")[0].position[:, 1]
    flying = y[2:] < FLOOR - half_height("ball", "small") - 3
    acceleration = np.diff(y, 2)[flying]
    assert len(acceleration) > 2
    np.testing.assert_allclose(acceleration, GRAVITY, rtol=1e-6)
    assert abs(y[-1] - (FLOOR - half_height("ball", "small"))) < 0.5


def test_a_bouncing_ball_loses_height():
    peaks = [track("bounces", seed=seed)[0].position[:, 1] for seed in range(20)]
    for y in peaks:
        landing = int(np.argmax(y > FLOOR - half_height("ball", "small") - 1.5))
        assert y[landing:].min() > y[0] - 1e-6


@pytest.mark.parametrize(("motion", "sign"), [("slides left", -1), ("slides right", 1), ("thrown left", -1)])
def test_directions_are_as_the_caption_says(motion, sign):
    for seed in range(5):
        x = track(motion, seed=seed)[0].position[:, 0]
        assert sign * (x[-1] - x[0]) > 3


def test_circles_have_constant_radius_and_opposite_turns():
    for motion, sign in (("circles clockwise", 1), ("circles counterclockwise", -1)):
        path = track(motion)[0].position
        centre = np.linalg.lstsq(np.c_[2 * path, np.ones(FRAMES)], (path**2).sum(1), rcond=None)[0][:2]
        away = path - centre
        radius = np.linalg.norm(away, axis=1)
        np.testing.assert_allclose(radius, radius[0], rtol=1e-6)
        turn = away[:-1, 0] * away[1:, 1] - away[:-1, 1] * away[1:, 0]  # y points down: positive is clockwise
        assert (sign * turn > 0).all()


def test_a_pendulum_keeps_the_length_of_its_string():
    length = np.linalg.norm(track("swings")[0].position - np.array(PIVOT), axis=1)
    np.testing.assert_allclose(length, length[0], rtol=1e-9)


def test_a_collision_keeps_momentum_until_a_wall_is_touched():
    first, second = track("hits", other=Body("small", "blue", "ball"), seed=3)
    v = np.stack([np.diff(first.position[:, 0]), np.diff(second.position[:, 0])])
    assert v[1, 0] == 0
    assert v[1].max() > 0.8 * v[0, 0]  # equal masses: the first hands its speed to the second
    struck = int(np.argmax(v[1] > 0.8 * v[0, 0]))
    assert abs(v[0, struck]) < 0.2 * v[0, 0]


def test_the_same_seed_gives_the_same_track():
    a, b, c = track("floats", seed=4)[0], track("floats", seed=4)[0], track("floats", seed=5)[0]
    assert (a.position == b.position).all()
    assert (a.position != c.position).any()


@pytest.mark.parametrize("seed", range(5))
def test_films_are_staged(seed):
    y = track("circles clockwise", seed=seed)[0].position[:, 1]
    assert y[0] == pytest.approx(y.min(), abs=0.2)  # at the top
    away = np.abs(track("swings", seed=seed)[0].position[:, 0] - PIVOT[0])
    assert away[0] == pytest.approx(away.max(), abs=0.05)  # let go at one end
    assert np.abs(track("floats", seed=seed)[0].position[0] - 16).max() < 5
    assert track("spins", shape="square", seed=seed)[0].angle[0] == 0
