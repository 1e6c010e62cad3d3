from copy import deepcopy
from functools import cache

import pytest
import torch

from besttake.rewards import load_reward
from besttake.world.film import render
from besttake.world.flaws import FLAWS
from tests.rewards.films import CLEAN, FILMS, PROMPTS, spoilt

CRITIC = load_reward("heldout")


def plausibility(videos: torch.Tensor, prompts: list[str] = PROMPTS) -> torch.Tensor:
    return CRITIC(videos, prompts)["plausibility"]


@cache
def clean_score() -> torch.Tensor:
    return plausibility(CLEAN)


@cache
def clean_features() -> torch.Tensor:
    return CRITIC.features(CLEAN, PROMPTS)


@pytest.mark.parametrize("flaw", FLAWS)
def test_severity_lowers_plausibility(flaw):
    little, much = (plausibility(spoilt(flaw, severity, every=3), PROMPTS[::3]) for severity in (0.3, 0.9))
    assert clean_score()[::3].mean() > little.mean() > much.mean()


@pytest.mark.parametrize(
    "bland",
    [
        pytest.param(torch.zeros_like(CLEAN), id="grey"),
        pytest.param(-torch.ones_like(CLEAN), id="black"),
        pytest.param(CLEAN[:, :1].expand_as(CLEAN), id="still"),
        pytest.param(CLEAN.roll(1, 0), id="other captions"),
    ],
)
def test_blandness_gains_nothing(bland):
    assert (plausibility(bland) < clean_score()).float().mean() > 0.9


def test_clip_without_its_body_is_implausible():
    empty = deepcopy(FILMS)
    for film in empty:
        for actor in film.actors:
            actor.opacity = 0 * actor.opacity
    assert (plausibility(torch.stack([render(film) for film in empty])) < clean_score()).float().mean() > 0.9


def test_one_wild_frame_costs_a_bounded_amount():
    wild = CLEAN.clone()
    wild[:, 8] = 1e3
    assert plausibility(wild).min() > -30


@pytest.mark.parametrize(
    ("flaw", "ratio"),
    [("flicker", 1.5), ("melt", 1.5), ("teleport", 1.5), pytest.param("jitter", 1.1, id="jitter, seen only weakly")],
)
def test_features_distinguish_flawed_from_clean(flaw, ratio):
    clean, flawed = clean_features(), CRITIC.features(spoilt(flaw, 1.0), PROMPTS)
    assert clean.shape == (len(CLEAN), 64)
    assert 0.6 < clean.square().mean() < 1.5  # white on the clean clips it was fitted on, so about 1 on these
    assert flawed.square().mean() > ratio * clean.square().mean()


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="critic heldout: videos have 5 frames, expected 8 or more"):
        CRITIC(CLEAN[:1, :5], PROMPTS[:1])
