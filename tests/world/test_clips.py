import numpy as np
import pytest
import torch

from besttake.world.captions import Body, Caption
from besttake.world.clips import make_batch, make_clip
from besttake.world.film import make_film, render
from besttake.world.flaws import FLAWS, PRETRAINING_MIX, add_flaws

CAPTION = Caption(Body("large", "green", "square"), "thrown right", "light")


def film(seed=0):
    return make_film(CAPTION, np.random.default_rng(seed))


def test_clips_are_deterministic_and_independent_of_each_other():
    videos, clips = make_batch(3, 10, 4, flawed_share=0.5)
    assert videos.shape == (4, 16, 3, 32, 32)
    assert videos.dtype == torch.float32
    assert videos.abs().max() <= 1
    alone = make_clip(3, 12, flawed_share=0.5)
    assert torch.equal(alone.video, videos[2])
    assert alone.flaws == clips[2].flaws


def test_a_ball_is_a_round_ball_of_its_colour():
    caption = Caption(Body("large", "red", "ball"), "floats", "dark")
    frame = render(make_film(caption, np.random.default_rng(0)))[0]
    red = frame[0] - frame[1:].mean(0) > 0.7
    area, rows, columns = red.sum().item(), red.any(1).sum().item(), red.any(0).sum().item()
    assert abs(area - np.pi * 6.2**2) < 0.12 * np.pi * 6.2**2
    assert abs(rows - columns) <= 1


@pytest.mark.parametrize("name", FLAWS)
def test_every_flaw_changes_the_clip_more_the_more_severe_it_is(name):
    change = []
    for severity in (0.2, 1.0):
        changes = []
        for seed in range(6):
            spoilt = film(seed)
            FLAWS[name](spoilt, severity, np.random.default_rng(seed))
            noise = np.random.default_rng(7)
            changes.append((render(spoilt, noise) - render(film(seed))).abs().mean().item())
        change.append(float(np.mean(changes)))
    assert 0 < change[0] < change[1]


def test_frozen_films_stand_still():
    spoilt = film()
    FLAWS["freeze"](spoilt, 1.0, np.random.default_rng(0))
    video = render(spoilt)
    assert torch.equal(video[0], video[-1])


def test_the_share_of_flawed_clips_is_as_set():
    _, clips = make_batch(0, 0, 200, flawed_share=0.4)
    share = np.mean([bool(clip.flaws) for clip in clips])
    assert 0.3 < share < 0.5
    assert {name for clip in clips for name in clip.flaws} <= set(PRETRAINING_MIX)


def test_spoiling_tells_which_flaws_and_how_severe():
    severities = add_flaws(film(), np.random.default_rng(1), low=0.6)
    assert severities
    assert all(0.6 <= value <= 1 for value in severities.values())
