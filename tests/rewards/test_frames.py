"""What critics get of a clip: frames chosen, resized as Pillow does, normalised; with gradients."""

import numpy as np
import pytest
import torch
from PIL import Image

from besttake.rewards.frames import (
    aggregate_frames,
    centre_crop,
    clip_preprocess,
    even_frames,
    frames_at_rate,
    normalise,
    resize_like_pillow,
    resize_shorter_side,
    to_pixels,
)
from tests.rewards.pictures import as_frames, picture


@pytest.mark.parametrize(("frames", "n"), [(49, 8), (81, 16), (16, 16), (5, 2), (7, 1), (3, 9)])
def test_even_frames_are_those_of_numpy(frames, n):
    assert even_frames(frames, n) == np.linspace(0, frames - 1, n).astype(int).tolist()


def test_frames_at_a_rate_follow_the_clock_and_stay_in_the_clip():
    assert frames_at_rate(16, 8.0, 2.0) == [0, 4, 8, 12]
    assert frames_at_rate(24, 23.976, 2.0) == [0, 12]
    assert frames_at_rate(4, 8.0, 16.0) == [0, 0, 1, 2, 2, 2, 3, 3]  # faster than the clip: frames are shown again
    assert frames_at_rate(3, 24.0, 2.0) == [0]  # shorter than half a second


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(40, 30), (97, 150)])
def test_resizing_is_pillows_to_one_step_in_255(mode, size):
    image = picture(67, 101)
    frames = to_pixels(as_frames(image))
    resampling = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[mode]
    theirs = torch.from_numpy(np.array(Image.fromarray(image).resize(size[::-1], resampling))).permute(2, 0, 1)
    assert (resize_like_pillow(frames, size, mode)[0] - theirs).abs().max() <= 1


def test_the_shorter_side_and_the_square_in_the_middle():
    wide = torch.zeros(2, 3, 30, 41)
    assert resize_shorter_side(wide, 60).shape == (2, 3, 60, 82)
    assert resize_shorter_side(wide.mT, 60).shape == (2, 3, 82, 60)
    columns = torch.arange(7.0).expand(1, 3, 4, 7)
    assert centre_crop(columns, 4)[0, 0, 0].tolist() == [2, 3, 4, 5]


def test_pixels_are_whole_numbers_with_a_gradient():
    frames = torch.linspace(-1.2, 1.2, 3 * 64).view(1, 3, 8, 8).requires_grad_()
    found = to_pixels(frames)
    assert torch.equal(found, found.round())
    assert (found.min(), found.max()) == (0, 255)
    clip_preprocess(frames, 4).sum().backward()
    inside = frames.detach().abs() < 1
    assert frames.grad[inside].abs().min() > 0
    assert frames.grad[~inside].abs().max() == 0


def test_normalised_is_mean_0_and_deviation_1_of_such_a_picture():
    assert normalise(torch.full((1, 3, 1, 1), 127.5), (0.5,) * 3, (0.25,) * 3).flatten().tolist() == [0, 0, 0]
    assert normalise(torch.full((1, 3, 1, 1), 255.0), (0.5,) * 3, (0.25,) * 3).flatten().tolist() == [2, 2, 2]


def test_frames_become_one_number():
    scores = torch.tensor([[1.0, 2.0, 6.0, 3.0]])
    assert aggregate_frames(scores).item() == 3
    assert aggregate_frames(scores, "min").item() == 1
    weights = np.exp(-np.abs(np.arange(4) - 2.0))
    assert aggregate_frames(scores, "segments").item() == pytest.approx(float(np.average(scores[0], weights=weights)))
    with pytest.raises(ValueError, match="expected 'mean', 'min' or 'segments'"):
        aggregate_frames(scores, "best")
