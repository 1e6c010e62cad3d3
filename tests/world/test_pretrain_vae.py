"""The shipped autoencoders are good enough not to be the bottleneck."""

import torch

from besttake.models import load_model
from besttake.world.build import FRAMES
from besttake.world.pretrain_vae import VAEConfig, make_vae, psnr


def test_it_restores_clips_to_thirty_decibels(family, tmp_path):
    vae = make_vae(VAEConfig(family, tmp_path, clips=40))
    assert psnr(vae, FRAMES[family]) > 30
    state = torch.load(tmp_path / family / "vae" / "state.pt", weights_only=True)["module"]
    assert all(torch.equal(state[name], value) for name, value in vae.state_dict().items())


def test_the_shipped_one_does_too(family):
    assert psnr(load_model(family).pipeline.vae, FRAMES[family]) > 30
