import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from besttake.rewards.networks.image_critic import ImageCritic, hf_clip_preprocess
from besttake.types import CriticCard
from tests.rewards.pictures import as_frames, picture


class Brightness(ImageCritic):
    name, dimensions = "brightness", ("light",)
    card = CriticCard("", "", {"light": (-1.0, 1.0)})

    def score(self, frames, prompts):
        return frames.mean((2, 3, 4))


def brightness(**settings):
    return Brightness(torch.nn.Linear(1, 1), **settings)


def ramp(frames):
    return torch.linspace(0, 1, frames).view(1, -1, 1, 1, 1).expand(1, -1, 3, 4, 4)


def test_frames_are_spread_from_first_to_last():
    critic = brightness(frames=3)
    assert critic.card.frames == 3
    assert Brightness.card.frames is None
    torch.testing.assert_close(critic(ramp(11), ["x"]).values.item(), 0.5)
    torch.testing.assert_close(brightness(frames=8)(ramp(2), ["x"]).values.item(), 0.5)


def test_the_worst_frame_counts_if_set():
    assert brightness(aggregate="min")(ramp(11), ["x"]).values.item() == 0


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="critic brightness: frames is 0, expected 1 or more"):
        brightness(frames=0)
    with pytest.raises(ValueError, match=r"critic brightness: aggregate is 'median'; expected"):
        brightness(aggregate="median")


@pytest.mark.parametrize("size", [(480, 832), (704, 1280), (300, 211), (64, 65)])
def test_frames_look_as_transformers_shows_them(size):
    image = picture(*size)
    expected = CLIPImageProcessorPil()(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    seen = hf_clip_preprocess(as_frames(image), 224)
    assert seen.shape == expected.shape
    difference = (seen - expected).abs()
    assert difference.mean() < 0.005  # a third of one of the 255 steps
    assert difference.max() < 0.02  # one of them
