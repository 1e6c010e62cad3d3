"""Tiny random models and material for tests to stand on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from besttake.data.pairs import PreferencePair, write_pairs
from besttake.data.video import write_video
from besttake.models import VideoModel, load_model
from besttake.world.build import FAMILIES, build

FRAMES, SIDE = {"tiny-cogvideox": 4, "tiny-wan": 5}, 16
"""The size of the random models' clips."""

CAPTIONS = ("a red ball", "a blue ball", "a small green ball", "a large red square")


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Callable[..., Path]:
    """The pipeline folder of a family, of few layers and with random weights, written once; do not change it."""
    written: dict[tuple[str, int], Path] = {}

    def folder(family: str, layers: int = 2) -> Path:
        if (family, layers) not in written:
            written[family, layers] = tmp_path_factory.mktemp("models") / family
            random_pipeline(family, layers).save_pretrained(written[family, layers])
        return written[family, layers]

    return folder


@pytest.fixture
def model(model_folder, family) -> VideoModel:
    """A fresh random model of each family in turn."""
    return load_model(str(model_folder(family)))


@pytest.fixture
def cogvideox(model_folder) -> VideoModel:
    return load_model(str(model_folder("tiny-cogvideox")))


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    """A folder with `prompts.txt`, captioned `clips/` and preference `pairs.jsonl`; do not change it."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "prompts.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    generator = torch.Generator().manual_seed(5)
    for i, caption in enumerate(CAPTIONS):
        video = torch.rand(6, 3, SIDE, SIDE, generator=generator) * 2 - 1
        write_video(folder / "clips" / f"{i}.mp4", video, 8)
        (folder / "clips" / f"{i}.txt").write_text(caption)
    clips = [folder / "clips" / f"{i}.mp4" for i in range(len(CAPTIONS))]
    write_pairs(folder / "pairs.jsonl", [PreferencePair(CAPTIONS[i], clips[i], [clips[i - 1]], 0.5) for i in range(3)])
    return folder


def random_pipeline(family: str, layers: int = 2) -> DiffusionPipeline:
    """A family's pipeline, shallower and for smaller clips than the one that is shipped."""
    pipeline = build(family)
    size = {"sample_frames": FRAMES[family], "sample_height": SIDE, "sample_width": SIDE}
    if family == "tiny-cogvideox":  # counts latents, not pixels
        scale = pipeline.vae_scale_factor_spatial
        size |= {"sample_height": SIDE // scale, "sample_width": SIDE // scale}
    else:  # a Wan transformer knows no size; `Wan` looks for it in the autoencoder's config
        pipeline.vae.register_to_config(**size)
        pipeline.vae.register_to_config(latents_mean=[0.1] * 12, latents_std=[2.0] * 12)
        size = {}
    config = {**pipeline.transformer.config, "num_layers": layers, **size}
    pipeline.transformer = type(pipeline.transformer).from_config(config).eval()
    return pipeline
