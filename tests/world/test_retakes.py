"""Clean clips that a model noises and denoises again."""

import numpy as np
import pytest
import torch

from besttake.world.retakes import EARLIEST, lost, make_retakes, retake

PROMPT = "a small red ball bounces on a dark background"


def test_from_time_zero_only_the_codec_is_passed(model):
    video = torch.rand(1, *model.default_size()[:1], 3, *model.default_size()[1:]) * 2 - 1
    again = retake(model, video, [PROMPT], 0.0, np.random.default_rng(0), 4)
    torch.testing.assert_close(again, model.decode(model.encode(video)).detach().clamp(-1, 1))


def test_the_later_the_time_the_less_is_left_of_the_clip(model):
    video = torch.rand(1, *model.default_size()[:1], 3, *model.default_size()[1:]) * 2 - 1
    times = [float(model.schedule.time(timestep)) for timestep in model.sampler(8).timesteps[[-1, 0]]]
    codec, early, late = (retake(model, video, [PROMPT], t, np.random.default_rng(0), 8) for t in (0.0, *times))
    assert 0 < (early - codec).abs().mean() < (late - codec).abs().mean()


def test_groups_of_takes_with_their_times(cogvideox):
    cogvideox.pipeline.transformer.register_to_config(sample_frames=16, sample_height=8, sample_width=8)
    retakes = make_retakes(cogvideox, groups=2, takes=3, seed=0, steps=2)
    assert retakes.videos.shape == (2, 3, 16, 3, 32, 32)
    assert retakes.videos.dtype == torch.uint8
    assert (retakes.times[:, 0] == 0).all()
    assert (retakes.times[:, 1:] >= EARLIEST).all()
    assert len(retakes.captions) == 2


def test_what_is_lost_grows_from_nothing_to_all():
    assert lost(torch.tensor([0.0, EARLIEST, 1.0])).tolist() == pytest.approx([0, 0, 1])
