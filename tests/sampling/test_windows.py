"""Frames decoded from windows of latents, against the same frames of the whole clip."""

import pytest
import torch

from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.sampling import windows
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.sampling.windows import decode_some


class Echo:
    """A model whose frames are the numbers of their latents: one of the first, four of every other."""

    source = "echo"

    def __init__(self):
        self.decoded = 0

    def decode(self, latents, frames):
        self.decoded += latents.shape[2]
        times = torch.arange(frames).add(3).div(4, rounding_mode="floor")
        return latents[:, :, times].transpose(1, 2)


@pytest.mark.parametrize("some", [1, 2, 3, 5, 21])
def test_every_frame_is_of_its_own_latent(some):
    model, latents = Echo(), torch.arange(21.0).view(1, 1, 21, 1, 1).expand(2, -1, -1, -1, -1)
    found = decode_some(model, latents, 81, some)
    expected = torch.linspace(0, 80, some).floor().add(3).div(4, rounding_mode="floor")
    assert found.shape == (2, some, 1, 1, 1)
    assert found[1].flatten().tolist() == expected.tolist()
    assert model.decoded == {1: 1, 2: 4, 3: 7, 5: 13, 21: 21}[some]  # of many frames windows would save nothing


@pytest.mark.parametrize("name", ["tiny-cogvideox", "tiny-wan"])
def test_a_window_shows_nearly_what_the_whole_clip_does(name, monkeypatch):
    model = load_model(name)
    takes = generate(model, read_prompts("world-test")[:4], RolloutConfig(steps=8))
    frames = takes.videos.shape[1]
    monkeypatch.setattr(windows, "BEFORE", 1)
    with torch.no_grad():
        found = decode_some(model, takes.latents, frames, 2).clamp(-1, 1)
    whole = takes.videos[:, [0, frames - 1]]
    assert (found - whole)[:, 0].abs().mean() < 1e-5  # nothing is before it
    assert (found - whole).abs().mean() < 0.2 * (whole[:, 0] - whole[:, 1]).abs().mean()


def test_latents_that_cannot_be_decoded_by_themselves_are_refused():
    with pytest.raises(ValueError, match="51 frames of echo are 15 latents, none of which can be decoded by itself"):
        decode_some(Echo(), torch.zeros(1, 1, 15, 1, 1), 51, 4)
