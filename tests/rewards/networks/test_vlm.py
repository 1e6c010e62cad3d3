import numpy as np
import pytest
import torch
from PIL import Image

from besttake.rewards.frames import resize_like_pillow
from besttake.rewards.networks.vlm import dtype_of, find_folder, last_token_index


def test_place_before_the_first_pad_or_the_last():
    ids = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8], [5, 0, 7, 0]])
    assert last_token_index(ids, 0).tolist() == [1, 3, 0]
    assert last_token_index(ids, None).tolist() == [3, 3, 3]


def test_precision_is_that_of_the_configuration():
    assert dtype_of("x", {"torch_dtype": "bfloat16"}) is torch.bfloat16
    assert dtype_of("x", {}) is torch.float32
    with pytest.raises(ValueError, match=r"critic x: its configuration has dtype 'nonsense'"):
        dtype_of("x", {"dtype": "nonsense"})


def test_first_folder_with_the_file_counts(tmp_path):
    for name in ("a", "b", "base"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "config.json").touch()
    folders = [tmp_path / "a", tmp_path / "b"]
    assert find_folder("x", "config.json", folders, tmp_path / "base") == tmp_path / "b"
    assert find_folder("x", "tokenizer.json", folders, tmp_path / "base") == tmp_path / "base"
    with pytest.raises(ValueError, match=r"critic x: there is no folder 'none', nor a hub id"):
        find_folder("x", "tokenizer.json", folders, "none")


@pytest.mark.parametrize(("mode", "pillow"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("size", [(90, 150), (30, 41), (64, 41), (90, 96)])
def test_pictures_are_resized_as_pillow_does(size, mode, pillow):
    y, x = torch.meshgrid(torch.linspace(0, 40, 64), torch.linspace(0, 60, 96), indexing="ij")
    picture = torch.stack([torch.sin(x * (c + 1) + y) for c in range(3)]).add(1).mul(127.5).round()
    file = Image.fromarray(picture.byte().permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(file.resize(size[::-1], pillow))).permute(2, 0, 1).float()
    error = (resize_like_pillow(picture[None], size, mode)[0] - expected).abs()
    assert error.max() <= 2, "steps of colour"
    assert (error > 0).float().mean() < 0.05
