"""Open-Sora's autoencoder against the authors' own numbers, and its public checkpoint format."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from besttake.models.networks.opensora_vae import VideoAutoencoderPipeline

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = load_file(GOLDEN / "opensora12_vae_pipeline_tiny.safetensors")
MORE = load_file(GOLDEN / "opensora12_more.safetensors")


def settings(micro_batch: int = 4) -> dict:
    with safe_open(GOLDEN / "opensora12_vae_pipeline_tiny.safetensors", "pt") as file:
        image, time = (json.loads(file.metadata()[f"{name}_config"]) for name in ("spatial", "temporal"))
    return {
        "vae_2d": {"type": "VideoAutoencoderKL", "micro_batch_size": micro_batch, "config": image},
        "vae_temporal": {"type": "VAE_Temporal_SD", "from_pretrained": None, **time},
    }


def waves(name: str, weight: Tensor) -> Tensor:
    """The weights that the temporal stage had when its golden numbers were made."""
    n = torch.arange(weight.numel(), dtype=torch.float64)
    values = 1.4 * torch.sin(0.37 * n**2 + len(name)).view(weight.shape)
    if weight.ndim > 1:
        return (values / weight[0].numel() ** 0.5).float()
    return (values * 0.1 + (name.endswith("weight") and "norm" in name)).float()


def golden_vae(**kwargs) -> VideoAutoencoderPipeline:
    vae = VideoAutoencoderPipeline(**settings(**kwargs)).eval()
    vae.load_state_dict(
        {
            name: waves(name, weight) if name.startswith("temporal_vae") else TINY.get(f"state.{name}", weight)
            for name, weight in vae.state_dict().items()
        }
    )
    return vae


@pytest.fixture
def vae() -> VideoAutoencoderPipeline:
    return golden_vae()


def test_parameters_have_the_public_names(vae):
    names = {name for name in vae.state_dict() if name.startswith("spatial_vae.")}
    assert names == {name.removeprefix("state.") for name in TINY if name.startswith("state.")}
    assert torch.equal(vae.shift, TINY["shift"].view(1, 4, 1, 1, 1))
    assert torch.equal(vae.scale, TINY["scale"].view(1, 4, 1, 1, 1))
    with torch.device("meta"):
        whole = VideoAutoencoderPipeline()
    shapes = {name: tuple(weight.shape) for name, weight in whole.state_dict().items()}
    assert shapes["temporal_vae.encoder.block_res_blocks.3.0.conv3.conv.weight"] == (512, 256, 1, 1, 1)
    assert shapes["temporal_vae.encoder.conv_blocks.2.conv.weight"] == (256, 256, 3, 3, 3)
    assert shapes["temporal_vae.decoder.conv_blocks.1.conv.bias"] == (512,)
    assert shapes["temporal_vae.quant_conv.conv.weight"] == (8, 8, 1, 1, 1)
    assert "temporal_vae.encoder.conv_in.conv.bias" not in shapes
    assert "temporal_vae.encoder.conv_blocks.0.conv.weight" not in shapes
    assert sum(weight.numel() for weight in whole.spatial_vae.parameters()) == 83_653_863  # SDXL's


@torch.no_grad()
def test_the_image_stage_is_the_authors(vae):
    latents = vae.spatial_vae.encode(TINY["T17.x"])
    torch.testing.assert_close(latents, TINY["T17.spatial_latent_mode_x0.18215"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 5, 20])  # 20 = 17 + 3
@torch.no_grad()
def test_encode_and_decode_are_the_authors(vae, frames):
    z = (vae.encode(MORE[f"T{frames}.x"]).latent_dist.mode() - vae.shift) / vae.scale
    torch.testing.assert_close(z, MORE[f"T{frames}.z_scaled"], atol=1e-5, rtol=1e-5)
    video = vae.decode(z * vae.scale + vae.shift, frames).sample
    torch.testing.assert_close(video, MORE[f"T{frames}.x_rec"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_number_of_frames_at_once_changes_nothing(vae):
    one_by_one, x = golden_vae(micro_batch=1), MORE["T5.x"]
    latents = vae.encode(x).latent_dist.mode()
    torch.testing.assert_close(one_by_one.encode(x).latent_dist.mode(), latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(one_by_one.decode(latents, 5).sample, vae.decode(latents, 5).sample, atol=1e-5, rtol=0)


@torch.no_grad()
def test_chunks_of_17_frames_know_nothing_of_each_other(vae):
    x = torch.rand(1, 3, 20, 16, 16) * 2 - 1
    latents = vae.encode(x).latent_dist.mode()
    torch.testing.assert_close(latents[:, :, :5], vae.encode(x[:, :, :17]).latent_dist.mode(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(latents[:, :, 5:], vae.encode(x[:, :, 17:]).latent_dist.mode(), atol=1e-6, rtol=1e-5)


def test_frames_and_latent_frames_are_counted_as_the_authors_do(vae):
    for frames, latents in TINY["latent_T_table"].tolist():
        assert vae.latent_frames(frames) == latents
        assert vae.latent_frames(vae.most_frames(latents)) == latents
        assert vae.most_frames(latents) >= frames or frames < 17
    assert vae.most_frames(1) == 1
    assert vae.most_frames(15) == 51
    assert vae.space == 8


def test_latents_of_another_number_of_frames_are_refused(vae):
    with pytest.raises(ValueError, match="22 frames have 7 latent frames; 6 are to be decoded"):
        vae.decode(torch.zeros(1, 4, 6, 2, 2), 22)


def test_the_public_layout_is_read_and_written_as_it_is(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["VideoAutoencoderPipeline"]
    assert config["shift"] == pytest.approx([-0.10, 0.34, 0.27, 0.98])
    assert config["vae_2d"] == settings()["vae_2d"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_version": "4.38.2"}))
    read = VideoAutoencoderPipeline.from_pretrained(tmp_path)
    assert all(torch.equal(read.state_dict()[name], weight) for name, weight in vae.state_dict().items())
    assert torch.equal(read.scale, vae.scale)
    assert VideoAutoencoderPipeline.from_pretrained(tmp_path, torch.bfloat16).dtype == torch.bfloat16


def test_settings_of_another_autoencoder_are_refused(tmp_path):
    for settings, message in (
        ({"filters": 7}, "not a VideoAutoencoderPipeline's"),
        ({"activation_fn": "relu"}, "relu"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"vae_temporal": settings}))
        with pytest.raises(ValueError, match=message):
            VideoAutoencoderPipeline.empty(tmp_path)
