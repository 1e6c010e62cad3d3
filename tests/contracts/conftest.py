"""The models that the contracts are tested with: a tiny random one of every kind there is."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from besttake.models import VideoModel, load_model
from besttake.types import Prompt
from tests.tiny import tiny_models

PROMPTS = ("a red ball", "a large blue square")


@pytest.fixture(params=tiny_models())
def name(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    """The checkpoint of a tiny model, written once; do not change it."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            torch.manual_seed(0)
            tiny, path = tiny_models()[name], tmp_path_factory.mktemp("tiny") / name
            if tiny.write:
                tiny.write(path)
            else:
                tiny.build().save_pretrained(path, max_shard_size="150KB")
            written[name] = path
        return written[name]

    return folder


@pytest.fixture
def tiny(name):
    return tiny_models()[name]


@pytest.fixture(scope="session")
def model_of(folder_of) -> Callable[[str], VideoModel]:
    return cache(lambda name: load_model(str(folder_of(name))))


@pytest.fixture
def model(name, model_of) -> VideoModel:
    """A model of each kind in turn, read once; do not change it."""
    return model_of(name)


@pytest.fixture
def fresh(name, folder_of) -> VideoModel:
    """A model of each kind in turn, to be changed."""
    return load_model(str(folder_of(name)))


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Callable[[tuple[int, int]], Path]:
    """An image file of (height, width)."""
    folder = tmp_path_factory.mktemp("pictures")

    def file(size: tuple[int, int]) -> Path:
        path = folder / f"{size[0]}x{size[1]}.png"
        pixels = torch.randint(256, (*size, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        return path

    return file


@pytest.fixture
def prompts(tiny, picture) -> list[str]:
    """Two prompts; with a first frame, for a model that needs one."""
    frame = picture(tiny.size[1:]) if tiny.first_frame else None
    return [Prompt(text, first_frame=frame) for text in PROMPTS]
