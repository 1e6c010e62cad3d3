from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel

from besttake.rewards.critics.hpsv2 import FILE, clean_text, config_of, load, to_transformers_names
from besttake.rewards.frames import normalise
from besttake.rewards.networks.image_critic import token_ids
from tests.rewards.pictures import as_frames, picture
from tests.tiny_critics.hpsv2 import write

GOLDEN = Path(__file__).parents[2] / "golden" / "hpsv2_tiny.safetensors"
"""Random weights, images, ids and scores of `hpsv2/src/open_clip` of tgxs002/HPSv2 at 866735e: `CLIP` of two layers,
sixteen heads and 28 x 28 pixels, without torchvision and timm, which it does not use here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hpsv2")
    write(path)
    return path


def test_network_scores_as_the_original():
    golden = load_file(GOLDEN)
    state = {name.removeprefix("state."): value for name, value in golden.items() if name.startswith("state.")}
    network = CLIPModel(config_of(state)).eval()
    network.load_state_dict(dict(to_transformers_names(state)))
    with torch.no_grad():
        text, image = (
            network.get_text_features(golden["ids"]).pooler_output,
            network.get_image_features(golden["image"]).pooler_output,
        )
    score = torch.cosine_similarity(text, image)
    torch.testing.assert_close(score, golden["score"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "inside"), [((480, 832), (16, 28)), ((64, 36), (28, 16)), ((30, 29), (28, 27))])
def test_whole_frame_is_seen_between_black_bars(folder, size, inside):
    image = picture(*size)
    floats = [Image.fromarray(np.float32(image[..., k])) for k in range(3)]  # Pillow neither cuts nor rounds these
    small = [np.array(plane.resize(inside[::-1], Image.BICUBIC)) for plane in floats]
    expected = torch.zeros(1, 3, 28, 28)
    top, left = ((28 - length) // 2 for length in inside)
    expected[0, :, top : top + inside[0], left : left + inside[1]] = torch.from_numpy(np.stack(small))
    torch.testing.assert_close(load(folder).preprocess(as_frames(image)), normalise(expected), atol=1e-3, rtol=0)


def test_gradient_reaches_the_corners(folder):
    video = as_frames(picture(40, 90))[None].requires_grad_()
    load(folder)(video, ["a red ball"]).values.sum().backward()
    assert (video.grad[0, 0, :, :4, :4].abs().sum() > 0) & (video.grad[0, 0, :, -4:, -4:].abs().sum() > 0)


def test_prompts_are_cleaned_as_open_clip_does(folder):
    assert clean_text(" Tom &amp;amp; Jerryâ€™s ") == "Tom & Jerry's"
    critic = load(folder)
    assert (
        token_ids(critic.tokenizer, ["a  red\n Ball"], 16).tolist()
        == token_ids(critic.tokenizer, ["a red ball"], 16).tolist()
    )


def test_folder_without_the_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"critic hpsv2: there is no HPS_v2.1_compressed.pt in .*xswu/HPSv2"):
        load(tmp_path)


def test_a_state_dict_of_something_else_is_refused(tmp_path):
    torch.save({"linear.weight": torch.zeros(1, 4)}, tmp_path / f"{FILE}.pt")
    with pytest.raises(
        ValueError, match=r"critic hpsv2: .*is no open_clip state dict: it lacks logit_scale, token_embedding.weight"
    ):
        load(tmp_path)


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path):
    torch.save({"state_dict": Path("x")}, tmp_path / f"{FILE}.pt")
    with pytest.raises(ValueError, match=r"critic hpsv2: .*is damaged, or no file of tensors"):
        load(tmp_path)
