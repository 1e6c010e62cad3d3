import pytest
import torch

from besttake.world.build import VAES
from besttake.world.clips import make_batch
from besttake.world.linear_codec import as_patches, start_as_linear_codec


@pytest.fixture(scope="module")
def videos():
    return make_batch(0, 0, 12, frames=17)[0]


@pytest.fixture(scope="module", params=VAES)
def vae(videos, request):
    model = VAES[request.param]()
    start_as_linear_codec(model, videos)
    return model


def principal(patches, keep):
    centred = patches - patches.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False)[2][:keep]
    return centred @ basis.T @ basis + patches.mean(0)


@torch.no_grad()
def test_it_restores_what_the_principal_components_restore(vae, videos):
    x = videos[:3].transpose(1, 2)
    restored = vae.decode(vae.encode(x).latent_dist.mode()).sample.transpose(1, 2)
    linear = principal(as_patches(videos, 4), 12)[: len(as_patches(videos[:3], 4))]
    error = (as_patches(restored, 4) - as_patches(videos[:3], 4)).square().mean()
    best = (linear - as_patches(videos[:3], 4)).square().mean()
    assert best < error < 1.3 * best


@torch.no_grad()
def test_each_frame_stands_for_itself(vae, videos):
    x = videos[:1].transpose(1, 2)
    whole = vae.encode(x).latent_dist.mode()
    part = vae.encode(x[:, :, 4:9]).latent_dist.mode()
    torch.testing.assert_close(part, whole[:, :, 4:9], rtol=0, atol=1e-4)


def test_patches_hold_every_pixel_once(videos):
    assert as_patches(videos, 4).shape == (12 * 17 * 64, 48)
    torch.testing.assert_close(as_patches(videos, 4).sum(), videos.sum(), rtol=1e-3, atol=0.5)
