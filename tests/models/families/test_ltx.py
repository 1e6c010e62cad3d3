"""LTX-Video's noise for the size of a clip, and its decoder that takes a time and adds noise of its own."""

import math
from zlib import crc32

import pytest
import torch

from besttake.models import load_model
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig, generate
from tests.tiny import ltx

PROMPT = "a red ball"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ltx-0.9.1")
    ltx.noisy_decoder().save_pretrained(folder)
    return load_model(str(folder))


def sample(model):
    frames, height, width = ltx.SIZE
    config = RolloutConfig(steps=3, guidance=1.0, frames=frames, height=height, width=width)
    return generate(model, [PROMPT], config, seed=(7,))


def test_a_decoder_with_noise_of_its_own_gives_the_official_pipelines_frames(model):
    ours, (frames, height, width) = sample(model), ltx.SIZE
    generator = keyed_generator(7, crc32(PROMPT.encode()), 0)
    noise = torch.randn((1, *model.latent_shape(*ltx.SIZE)), generator=generator)
    torch.manual_seed(0)  # its decoder's noise
    theirs = model.pipeline(
        prompt=PROMPT,
        latents=ltx.packed(None, noise),
        num_frames=frames,
        height=height,
        width=width,
        num_inference_steps=3,
        generator=generator,
        output_type="pt",
        **ltx.official(1.0),
    ).frames
    torch.testing.assert_close(ours.videos, theirs * 2 - 1, atol=1e-4, rtol=1e-4)


def test_a_sample_is_decoded_as_it_was_before_and_draws_nobody_elses_numbers(model):
    torch.manual_seed(5)
    expected, first = torch.randn(3), sample(model).videos
    torch.manual_seed(5)
    second = sample(model).videos
    assert torch.equal(first, second)
    assert torch.equal(torch.randn(3), expected)
    again = model.decode(torch.cat([sample(model).latents] * 2))  # the same in any batch
    torch.testing.assert_close(again[:1].clamp(-1, 1), again[1:].clamp(-1, 1))
    torch.testing.assert_close(again[:1].clamp(-1, 1), first)


@pytest.mark.parametrize(("shape", "logarithm"), [((4, 1, 32, 32), 0.95), ((4, 4, 32, 32), 2.05)])
def test_training_and_sampling_take_the_same_noise_for_a_size(model, shape, logarithm):
    """A half of the way to noise becomes e^mu / (e^mu + 1); mu = .95 for 1024 tokens, 2.05 for 4096."""
    there = math.exp(logarithm) / (math.exp(logarithm) + 1)
    assert model.schedule_for(shape).times(torch.tensor([0.5])).item() == pytest.approx(there)
    stretched = 1 - (1 - there) * 0.9 / (1 - there)  # of two steps, the second is where `shift_terminal` says
    assert model.make_scheduler(2, shape).sigmas.tolist() == pytest.approx([1, stretched, 0])


def test_a_single_step_goes_all_the_way(model):
    assert model.make_scheduler(1, (4, 2, 1, 2)).sigmas.tolist() == [1, 0]
