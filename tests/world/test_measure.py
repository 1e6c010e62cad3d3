"""The measures of the small world: clean clips pass, each flaw is found, captions that lie are caught."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from besttake.world import tracks
from besttake.world.captions import MOTIONS, Body, Caption, sample_caption
from besttake.world.film import make_film, render
from besttake.world.flaws import FLAWS
from besttake.world.measure import Measures, measure, measure_all, summary
from besttake.world.physics import FRAMES, simulate

BALL = Caption(Body("large", "red", "ball"), "thrown right", "dark")
SQUARE = Caption(Body("large", "blue", "square"), "spins", "grey")
HIT = Caption(Body("small", "green", "ball"), "hits", "light", Body("large", "purple", "square"))


def film(caption: Caption, flaw: str | None = None, severity: float = 0.8, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    made = make_film(caption, rng)
    if flaw:
        FLAWS[flaw](made, severity, rng)
    return render(made, rng)


def through_a_codec(video: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A little blur and noise, as an autoencoder leaves them (about 33 dB)."""
    kernel = torch.tensor([0.042, 0.916, 0.042])
    kernel = (kernel[:, None] * kernel)[None, None].expand(3, 1, 3, 3)
    soft = torch.nn.functional.conv2d(torch.nn.functional.pad(video, (1, 1, 1, 1), "replicate"), kernel, groups=3)
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
    return (soft + 0.04 * noise).clamp(-1, 1)


@pytest.fixture(scope="module")
def clean() -> tuple[list[Caption], torch.Tensor]:
    captions = [sample_caption(np.random.default_rng([5, i])) for i in range(16)]
    return captions, torch.stack([film(caption, seed=i) for i, caption in enumerate(captions)])


def test_clean_clips_pass_and_agree_with_their_captions(clean):
    captions, videos = clean
    measured = measure_all(videos, [str(caption) for caption in captions])
    assert measured["flaws"] == [()] * len(captions)
    for name in ("colour_right", "shape_right", "size_right", "motion_right", "background_right"):
        assert measured[name].all(), name
    assert np.allclose(measured["area_ratio"], 1, atol=0.03)
    assert measured["track_error"].max() < 1


def test_clean_clips_pass_through_a_codec(clean):
    captions, videos = clean
    lossy = torch.stack([through_a_codec(video, seed) for seed, video in enumerate(videos)])
    measured = measure_all(lossy, [str(caption) for caption in captions])
    assert measured["flaws"] == [()] * len(captions)
    assert measured["caption_agreement"].all()


MEASURED = [flaw for flaw in FLAWS if flaw not in ("mesh", "glare")]
"""Only the critics see the others, but for a mesh as fine as noise."""


@pytest.fixture(scope="module")
def flawed() -> dict[str, list[bool]]:
    """Each flaw on three captions and two seeds, through a codec: was it found?"""
    cases = [(flaw, caption, seed) for flaw in MEASURED for caption in (BALL, SQUARE, HIT) for seed in range(2)]
    videos = torch.stack([through_a_codec(film(caption, flaw, seed=seed)) for flaw, caption, seed in cases])
    flaws = measure_all(videos, [str(caption) for _, caption, _ in cases])["flaws"]
    seen_as = {name: name for name in MEASURED} | {"warp": "jitter", "stray": "astray"}  # a torn body shakes
    found = list(zip(flaws, cases, strict=True))
    return {name: [seen_as[name] in seen for seen, case in found if case[0] == name] for name in MEASURED}


@pytest.mark.parametrize("flaw", MEASURED)
def test_each_flaw_is_found_through_a_codec(flaw, flawed):
    assert sum(flawed[flaw]) >= 5  # of 6: a jump may land where the body was bound to go


def test_a_spin_that_stops_is_a_freeze_though_nothing_moves_in_either():
    assert measure(film(SQUARE), SQUARE).stillness == 0
    assert measure(film(SQUARE, "freeze", 1.0), SQUARE).stillness == FRAMES - 1


def test_a_body_at_rest_after_its_fall_is_no_freeze():
    falls = replace(BALL, motion="falls")
    assert "freeze" not in measure(film(falls), falls).flaws
    assert "freeze" in measure(film(falls, "freeze", 0.8), falls).flaws


@pytest.mark.parametrize(
    ("shown", "caption", "wrong"),
    [
        (BALL, replace(BALL, body=Body("large", "orange", "ball")), "colour_right"),
        (BALL, replace(BALL, body=Body("large", "red", "square")), "shape_right"),
        (BALL, replace(BALL, body=Body("large", "red", "ring")), "shape_right"),
        (BALL, replace(BALL, body=Body("small", "red", "ball")), "size_right"),
        (BALL, replace(BALL, motion="thrown left"), "motion_right"),
        (BALL, replace(BALL, motion="bounces"), "motion_right"),
        (BALL, replace(BALL, motion="floats"), "motion_right"),
        (SQUARE, replace(SQUARE, motion="circles clockwise"), "motion_right"),
        (BALL, replace(BALL, background="light"), "background_right"),
    ],
)
def test_a_caption_that_lies_is_caught_in_that_word(shown, caption, wrong):
    video = film(shown)
    assert getattr(measure(video, shown), wrong) == 1
    assert getattr(measure(video, caption), wrong) == 0


def test_dynamic_degree_counts_turning_and_falls_when_the_clip_stands():
    for caption in (BALL, SQUARE):
        moving, frozen = measure(film(caption), caption), measure(film(caption, "freeze", 1.0), caption)
        assert moving.dynamic_degree > 0.1
        assert frozen.dynamic_degree < 0.01


def test_an_empty_clip_is_flawed_and_finite():
    nothing = measure(torch.zeros(FRAMES, 3, 32, 32), BALL)
    assert nothing.vanishing == 1
    assert nothing.flawed
    assert all(np.isfinite(getattr(nothing, name)) for name in Measures.__dataclass_fields__)


def test_colour_that_strays_over_the_background_is_a_tint():
    video = film(BALL)
    video[:, 2] += 0.25
    assert "tint" in measure(video, BALL).flaws


def test_random_pixels_are_finite_and_flawed():
    video = torch.rand(FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for caption in (BALL, SQUARE, HIT):
        measured = measure(video, caption)
        assert measured.flawed
        assert all(np.isfinite(getattr(measured, name)) for name in Measures.__dataclass_fields__)


def test_a_clip_measures_the_same_alone_and_among_others(clean):
    captions, videos = clean
    together = measure_all(videos[:6], [str(caption) for caption in captions[:6]])
    for i in range(6):
        alone = measure(videos[i], captions[i])
        assert alone == measure(videos[i], captions[i])
        assert alone.track_error == pytest.approx(together["track_error"][i], abs=1e-9)
        assert alone.flaws == together["flaws"][i]


def test_summary_counts_flawed_clips_and_each_flaw():
    videos = torch.stack([film(BALL), film(BALL, "flicker"), film(BALL, "freeze"), film(BALL, "flicker", seed=3)])
    total = summary(measure_all(videos, [str(BALL)] * 4))
    assert total["flawed_share"] == 0.75
    assert total["share/flicker"] == 0.5
    assert total["share/freeze"] == 0.25
    assert total["object_area"] == pytest.approx(np.pi * 6.2**2, rel=0.05)
    assert 0 < total["dynamic_degree"] < 2


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_bank_holds_what_physics_films(motion):
    """A true track has a close neighbour among those that the search finds."""
    caption = HIT if motion == "hits" else replace(BALL, motion=motion)
    rng = np.random.default_rng(0)
    true = np.stack([[track.position for track in simulate(caption, rng)] for _ in range(6)])
    nearest, apart = tracks.nearest(true, motion, [caption.bodies] * 6)
    assert nearest.shape == true.shape
    assert np.median(apart) < 0.5
    assert apart.max() < 1.0


def test_bad_input_is_refused_with_a_message():
    video = film(BALL)
    with pytest.raises(ValueError, match=r"shape \(15, 3, 32, 32\), expected"):
        measure(video[:15], BALL)
    with pytest.raises(ValueError, match="NaN"):
        measure(torch.full_like(video, float("nan")), BALL)
    with pytest.raises(ValueError, match="2 videos but 1 prompts"):
        measure_all(torch.stack([video, video]), [str(BALL)])
    with pytest.raises(ValueError, match="not a caption of the small world"):
        measure_all(video[None], ["a cat sleeps"])
    with pytest.raises(ValueError, match="at least one video"):
        summary(measure_all(torch.zeros(0, FRAMES, 3, 32, 32), []))
