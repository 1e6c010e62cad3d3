import json

import pytest
import torch

from besttake.rewards import critic_names, load_reward

ANALYTIC = ("temporal-flicker", "motion-smoothness", "dynamic-degree")
EMBEDDED = (*ANALYTIC, "heldout", "world")


def test_every_critic_is_found_by_its_module():
    assert {"world", "heldout", "temporal_flicker", "motion_smoothness", "dynamic_degree"} <= set(critic_names())


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("shape", [(1, 3, 3, 5, 7), (2, 9, 3, 40, 24)])
def test_analytic_critics_take_any_size(name, shape):
    critic = load_reward(name)
    assert critic.name == name
    score = critic(torch.rand(shape) * 2 - 1, ["x"] * shape[0])
    assert score.values.shape == (shape[0], 1)
    assert 0 <= float(score.values.min()) <= float(score.values.max()) <= 1


@pytest.mark.parametrize("name", ANALYTIC)
def test_analytic_critics_have_a_gradient(name):
    video = (torch.rand(1, 5, 3, 8, 8) * 2 - 1).requires_grad_()
    load_reward(name)(video, ["x"]).values.sum().backward()
    assert video.grad.abs().sum() > 0


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize(
    ("video", "prompts", "message"),
    [
        (torch.zeros(1, 17, 3, 32, 32, dtype=torch.uint8), ["x"], "uint8"),
        (torch.zeros(1, 17, 1, 32, 32), ["x"], "expected float"),
        (torch.zeros(17, 3, 32, 32), ["x"] * 17, "expected float"),
        (torch.zeros(1, 1, 3, 32, 32), ["x"], "1 frames"),
        (torch.zeros(2, 17, 3, 32, 32), ["x"], "2 videos but 1 prompts"),
    ],
)
def test_videos_that_are_none_are_refused(name, video, prompts, message):
    with pytest.raises(ValueError, match=f"critic {name}.*{message}"):
        load_reward(name)(video, prompts)


def test_spelling_of_a_name_is_free():
    assert load_reward("temporal_flicker").name == load_reward("temporal flicker").name == "temporal-flicker"


@pytest.mark.parametrize("name", ["taste", "checks", "no/such/folder", ""])
def test_unknown_critic_lists_those_there_are(name):
    with pytest.raises(ValueError, match=r"expected one of .*dynamic-degree, .*heldout, .*world"):
        load_reward(name)


def test_a_served_critic_takes_no_weights_and_no_settings_here():
    for given in ({"path": "weights"}, {"num_frames": 8}):
        with pytest.raises(ValueError, match="http://there:8000 is remote; pass its path and settings to the server"):
            load_reward("http://there:8000", **given)


@pytest.mark.parametrize("config", ["{", "[]", json.dumps({"words": []})])
def test_folder_that_names_no_critic_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config.json does not name a critic"):
        load_reward(tmp_path)
