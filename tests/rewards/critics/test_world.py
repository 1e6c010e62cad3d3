import shutil
from functools import cache

import numpy as np
import pytest
import torch

from besttake.rewards import load_reward
from besttake.rewards.critics.world import WORDS
from besttake.rewards.shipped import EMBEDDED_WEIGHTS, word_ids
from besttake.world.captions import sample_caption
from besttake.world.film import make_film, render
from besttake.world.physics import WIDTH
from tests.rewards.films import CLEAN, PROMPTS, spoilt

CRITIC = load_reward("world")


@cache
def scored(flaw: str, severity: float):
    return CRITIC(spoilt(flaw, severity) if severity else CLEAN, PROMPTS)


def clean_score():
    return scored("none", 0)


@pytest.mark.parametrize(
    ("flaw", "dimension"),
    [
        ("blur", "visual quality"),
        ("noise", "visual quality"),
        ("melt", "visual quality"),
        ("warp", "visual quality"),
        ("tint", "visual quality"),
        ("mesh", "visual quality"),
        ("glare", "visual quality"),
        ("flicker", "temporal consistency"),
        ("jitter", "temporal consistency"),
        ("teleport", "temporal consistency"),
        ("vanish", "temporal consistency"),
        ("stray", "temporal consistency"),
        ("recolour", "temporal consistency"),
        ("freeze", "dynamic degree"),
        ("stray", "factual consistency"),
        ("jitter", "factual consistency"),
        ("teleport", "factual consistency"),
    ],
)
def test_severity_lowers_the_dimension_it_belongs_to(flaw, dimension):
    little, much = (scored(flaw, severity)[dimension] for severity in (0.3, 0.9))
    assert clean_score()[dimension].mean() > little.mean() > much.mean()
    assert (clean_score()[dimension] > much).float().mean() > 0.7


def test_other_clips_agree_less_with_the_caption():
    swapped = CRITIC(CLEAN.roll(1, 0), PROMPTS)["text alignment"]
    assert (clean_score()["text alignment"] > swapped).float().mean() > 0.8


def test_bodies_are_found_where_they_are():
    """The places that the paths are judged by, of clips that were not in the training."""
    rng = np.random.default_rng(5)
    films = [make_film(sample_caption(rng, "test"), rng) for _ in range(24)]
    ids = word_ids([str(film.caption) for film in films], CRITIC.words, WORDS)
    found = CRITIC.network.assess(torch.stack([render(film) for film in films]), ids).positions
    missed = [
        np.linalg.norm(place.numpy() - actor.position * 2 / WIDTH + 1, axis=-1)
        for film, two in zip(films, found.unbind(), strict=True)
        for actor, place in zip(film.actors, two.unbind(1), strict=False)
    ]
    assert np.median(missed) * WIDTH / 2 < 0.5  # pixels


def test_clean_clips_score_about_zero():
    assert clean_score().values.mean(0).abs().max() < 0.5
    assert clean_score().values.dtype == torch.float32


def test_a_score_does_not_depend_on_its_neighbours():
    alone = CRITIC(CLEAN[5:6], PROMPTS[5:6]).values
    assert torch.allclose(alone, clean_score().values[5:6], atol=1e-4)


def test_pixels_have_a_gradient_and_weights_have_none():
    videos = CLEAN[:1].clone().requires_grad_()
    CRITIC(videos, PROMPTS[:1]).values.sum().backward()
    assert videos.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in CRITIC.network.parameters())


def test_strange_prompts_are_scored_too():
    prompts = ["", "der Ball, 1000 times! " * 5000]
    assert CRITIC(CLEAN[:2], prompts).values.isfinite().all()


def test_odd_size_is_refused():
    with pytest.raises(ValueError, match=r"critic world: sides are \(30, 32\), expected multiples of 8"):
        CRITIC(CLEAN[:1, :, :, :30], PROMPTS[:1])


def test_copied_folder_is_the_same_critic(tmp_path):
    shutil.copytree(EMBEDDED_WEIGHTS / "critic-world", tmp_path / "mine")
    assert torch.equal(
        load_reward(tmp_path / "mine")(CLEAN[:2], PROMPTS[:2]).values, CRITIC(CLEAN[:2], PROMPTS[:2]).values
    )


def test_truncated_weights_are_refused(tmp_path):
    shutil.copytree(EMBEDDED_WEIGHTS / "critic-world", tmp_path / "mine")
    weights = tmp_path / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be loaded"):
        load_reward(tmp_path / "mine")


def test_weights_of_another_critic_are_refused(tmp_path):
    shutil.copytree(EMBEDDED_WEIGHTS / "critic-world", tmp_path / "mine")
    shutil.copy(EMBEDDED_WEIGHTS / "critic-heldout" / "model.safetensors", tmp_path / "mine")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be loaded"):
        load_reward(tmp_path / "mine")
