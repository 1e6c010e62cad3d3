import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from besttake.rewards.critics.mps import (
    FILE,
    MpsCritic,
    MpsNetwork,
    apply_rotary,
    load,
    network_name,
    related_tokens,
    sizes,
)
from besttake.rewards.networks.weights import load_weights
from tests.rewards.pictures import as_frames, picture
from tests.tiny_critics.mps import write

GOLDEN = Path(__file__).parents[2] / "golden" / "mps_tiny.safetensors"
"""Random weights, images, ids and scores of Kwai-Kolors/MPS at be9027f under transformers 4.27.3: `XCLIPModel`,
`Cross_model(dim=16, layer_num=2, dim_head=8, heads=3)` and the body of the HPDv2 evaluation's `infer_one_sample`, in
float32 instead of float16."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mps")
    write(path)
    return path


def golden_network():
    golden = load_file(GOLDEN)
    state = {name.removeprefix("state."): value for name, value in golden.items() if name.startswith("state.")}
    half = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 16}
    half["hidden_act"] = "gelu"
    clip = CLIPConfig(
        text_config={**half, "vocab_size": 40, "max_position_embeddings": 10, "eos_token_id": 2},
        vision_config={**half, "image_size": 28, "patch_size": 14},
        projection_dim=16,
    )
    network = MpsNetwork(clip, **sizes(state))
    load_weights("mps", network, state, network_name)
    return golden, network


def test_network_scores_as_the_original():
    golden, network = golden_network()
    score = network(golden["image"][:, None], golden["ids"], golden["condition"])[:, 0]
    torch.testing.assert_close(score, golden["score"], atol=1e-5, rtol=0)


def test_tokens_that_have_nothing_to_do_with_the_condition_do_not_count():
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.31, 0.9], [0.29, 0.9]]])
    assert related_tokens(text, torch.tensor([[[1.0, 0.0], [-1.0, -1.0]]])).tolist() == [[True, False, True, False]]
    golden, network = golden_network()
    related = related_tokens(network.read(golden["ids"])[0], network.read(golden["condition"])[0])
    assert related.sum(1).tolist() == [9, 9, 8]  # so the golden scores tell whether the mask is applied


def test_rotation_tells_distances_only():
    x = torch.randn(8).view(1, 1, 1, 8).expand(-1, -1, 5, -1)
    likeness = apply_rotary(x)[0, 0] @ apply_rotary(x)[0, 0].T
    torch.testing.assert_close(likeness[0, 1], likeness[3, 4])
    torch.testing.assert_close(likeness[0, 0], x[0, 0, 0].square().sum())


def test_videos_do_not_touch_each_other(folder):
    critic = load(folder)
    videos = torch.stack([torch.cat([as_frames(picture(40, 50, seed + k)) for k in (0, 1)]) for seed in (0, 5)])
    prompts = ["a red ball", "blue balls"]
    alone = torch.cat([critic(video[None], [prompt]).values for video, prompt in zip(videos, prompts, strict=True)])
    torch.testing.assert_close(critic(videos, prompts).values, alone, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_pixels(folder):
    video = as_frames(picture(40, 50))[None].requires_grad_()
    load(folder)(video, ["a red ball"]).values.sum().backward()
    assert video.grad.isfinite().all()
    assert video.grad.abs().sum() > 0


def test_condition_can_be_another(folder):
    critic = load(folder)
    other = MpsCritic(critic.network, critic.tokenizer, condition="hands")
    assert other.condition.shape == critic.condition.shape == (1, 16)
    assert not torch.equal(other.condition, critic.condition)


def test_the_pickled_module_gives_the_same_scores_as_its_state_dict(folder, tmp_path):
    whole = torch.load(folder / f"{FILE}.pth", weights_only=False)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / f"{FILE}.pth").unlink()
    with pytest.raises(ValueError, match=r"critic mps: there is no MPS_overall_checkpoint.pth in"):
        load(tmp_path / "copy")
    save_file(whole.state_dict(), tmp_path / "copy" / f"{FILE}.safetensors")
    video = as_frames(picture(40, 50))[None]
    scores = [load(place)(video, ["a red ball"]).values for place in (folder, tmp_path / "copy")]
    torch.testing.assert_close(*scores, atol=1e-6, rtol=1e-6)


def test_without_a_folder_it_tells_where_the_weights_are():
    with pytest.raises(ValueError, match=r"critic mps: its weights are not on the hub; download"):
        load()
