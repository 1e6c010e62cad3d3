"""Mochi's clock: 0 at the noise, 1000 at the data, slow at first."""

import pytest
import torch

from besttake.models import load_model
from tests.tiny import mochi


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mochi")
    mochi.pipeline().save_pretrained(folder)
    return load_model(str(folder))


def test_half_of_the_steps_take_a_fortieth_of_the_noise_away(model):
    sampler = model.make_scheduler(8, (12, 2, 2, 4))
    assert sampler.timesteps[[0, 2, 4]].tolist() == pytest.approx([0, 12.5, 25])
    assert model.schedule.time(sampler.timesteps[[0, 4]]).tolist() == pytest.approx([1, 0.975])
    assert model.make_scheduler(1, (12, 2, 2, 4)).sigmas.tolist() == [0, 1]


def test_the_network_predicts_the_way_to_the_data(model):
    data, noise, t = torch.randn(2, 12, 2, 2, 4), torch.randn(2, 12, 2, 2, 4), torch.tensor([0.1, 0.9])
    torch.testing.assert_close(model.schedule.target(data, noise, t), data - noise)
    assert model.schedule.timestep(t).tolist() == pytest.approx([900, 100])
