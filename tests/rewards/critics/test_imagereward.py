from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from besttake.rewards.critics.imagereward import FILE, ImageRewardNetwork, load, network_name, text_of, vision_of
from besttake.rewards.networks.weights import load_weights
from tests.rewards.pictures import as_frames, picture
from tests.tiny_critics.imagereward import SETTINGS, write

GOLDEN = Path(__file__).parents[2] / "golden" / "imagereward_tiny.safetensors"
"""Random weights, images, ids, masks and what the text's first token holds, of THUDM/ImageReward at c1392c6:
`VisionTransformer` of `vit.py` and `BertModel` of `med.py`, called as `ImageReward.score_gard` does, under transformers
4.27.3; timm's patch embedding was a strided convolution."""

PROMPTS = [
    "a red ball",
    "blue balls, a ball, a blue ball, all of them, and some more of these blue balls in a long row",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("imagereward")
    write(path)
    return path


def test_network_reads_as_the_original():
    golden = load_file(GOLDEN)
    state = {name.removeprefix("state."): value for name, value in golden.items() if name.startswith("state.")}
    settings = {**SETTINGS, "vocab_size": 40, "max_position_embeddings": 20}
    network = ImageRewardNetwork(vision_of(state), text_of(settings, state))
    head = {f"mlp.layers.{name}": value for name, value in network.layers.state_dict().items()}
    load_weights("imagereward", network, state | head, network_name)
    features = network.read(golden["image"], golden["ids"], golden["mask"])
    torch.testing.assert_close(features, golden["features"], atol=1e-5, rtol=0)


def test_reward_is_standardised(folder):
    critic = load(folder)
    critic.network.layers[7].weight.data.zero_()
    critic.network.layers[7].bias.data.fill_(0.16717 + 1.03334)
    score = critic(as_frames(picture(50, 70))[None], PROMPTS[:1])
    assert score["preference"].item() == pytest.approx(1, abs=1e-4)


def test_each_video_is_read_with_its_own_prompt(folder):
    critic, video = load(folder), as_frames(picture(50, 70)).repeat(2, 1, 1, 1)[None]
    both = critic(video.repeat(2, 1, 1, 1, 1), PROMPTS).values
    alone = torch.cat([critic(video, [prompt]).values for prompt in PROMPTS])  # the shorter one is padded above only
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=0)
    assert (both[0] - both[1]).abs() > 1e-4


def test_gradient_reaches_the_pixels(folder):
    video = as_frames(picture(50, 70))[None].requires_grad_()
    load(folder)(video, PROMPTS[:1]).values.sum().backward()
    assert video.grad.isfinite().all()
    assert video.grad.abs().sum() > 0


def test_folder_without_the_settings_is_refused(folder, tmp_path):
    (tmp_path / f"{FILE}.pt").symlink_to(folder / f"{FILE}.pt")
    with pytest.raises(ValueError, match=r"critic imagereward: .*med_config.json cannot be read"):
        load(tmp_path)
    (tmp_path / "med_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"critic imagereward: .*vocab_size"):
        load(tmp_path)


def test_a_state_dict_of_something_else_is_refused(tmp_path):
    torch.save({"linear.weight": torch.zeros(1, 4)}, tmp_path / f"{FILE}.pt")
    with pytest.raises(ValueError, match=r"critic imagereward: .*holds no BLIP: it lacks blip.visual_encoder"):
        load(tmp_path)
