from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from besttake.rewards.critics.aesthetic import CLIP, HEAD, AestheticNetwork, load
from besttake.rewards.frames import clip_preprocess
from tests.rewards.pictures import as_frames, picture
from tests.tiny_critics.aesthetic import write

GOLDEN = Path(__file__).parents[2] / "golden" / "aesthetic_mlp.safetensors"
"""Random weights of `MLP(16)`, embeddings, and their scores after `normalized`, of `simple_inference.py` of
christophschuhmann/improved-aesthetic-predictor at 6934dd8."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("aesthetic")
    write(path)
    return path


def test_head_rates_as_the_original():
    golden = load_file(GOLDEN)
    tiny = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    tiny.projection_dim = 16
    network = AestheticNetwork(CLIPVisionModelWithProjection(tiny))
    state = {name.removeprefix("state.layers."): value for name, value in golden.items() if name.startswith("state.")}
    network.layers.load_state_dict(state)
    with torch.no_grad():
        rated = network.rate(golden["embedding"])
    torch.testing.assert_close(rated, golden["score"], atol=1e-5, rtol=1e-5)


def test_score_is_that_of_transformers_and_the_head(folder):
    video = torch.stack([as_frames(picture(48, 80, seed))[0] for seed in range(3)])[None]
    model = CLIPModel.from_pretrained(folder / CLIP).eval()
    state = torch.load(folder / f"{HEAD}.pth", weights_only=True)
    with torch.no_grad():
        x = model.get_image_features(clip_preprocess(video[0], 28)).pooler_output
        x = x / x.norm(dim=-1, keepdim=True)
        for place in (0, 2, 4, 6, 7):
            x = x @ state[f"layers.{place}.weight"].T + state[f"layers.{place}.bias"]
    score = load(folder)(video, ["a ball"])
    torch.testing.assert_close(score["aesthetic"], x.mean()[None], atol=1e-5, rtol=1e-5)


def test_gradient_reaches_every_frame_it_saw(folder):
    video = as_frames(picture(40, 40))[None].repeat(1, 5, 1, 1, 1).requires_grad_()
    load(folder, frames=2)(video, ["a ball"]).values.sum().backward()
    assert [bool(frame.abs().sum() > 0) for frame in video.grad[0]] == [True, False, False, False, True]


def test_prompts_do_not_matter(folder):
    video, critic = as_frames(picture(40, 40))[None], load(folder)
    assert torch.equal(critic(video, ["a ball"]).values, critic(video, ["a square"]).values)


def test_folder_without_the_head_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"critic aesthetic: there is no sac\+logos\+ava1-l14-linearMSE.pth in"):
        load(tmp_path)


def test_a_head_of_something_else_is_refused(folder, tmp_path):
    (tmp_path / CLIP).symlink_to(folder / CLIP)
    torch.save({"linear.weight": torch.zeros(1, 24)}, tmp_path / f"{HEAD}.pth")
    with pytest.raises(ValueError, match="critic aesthetic: the weights are not those of its network: missing"):
        load(tmp_path)
