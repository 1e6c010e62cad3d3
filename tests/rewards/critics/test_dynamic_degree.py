import torch

from besttake.rewards import load_reward

CRITIC = load_reward("dynamic-degree")


def moving(speed, frames=8):
    video = torch.zeros(1, frames, 3, 32, 32)
    for t in range(frames):
        x = 2 + round(speed * t)
        video[:, t, 0, 12:18, x : x + 6] = 1
    return video


def test_still_picture_has_none():
    assert CRITIC(torch.rand(1, 1, 3, 16, 16).expand(-1, 5, -1, -1, -1), ["x"]).values.item() == 0


def test_uniform_flicker_is_no_motion():
    light = torch.tensor([0.3, -0.3, 0.2, -0.1, 0.3]).view(1, 5, 1, 1, 1)
    video = torch.rand(1, 1, 3, 16, 16) * 0.5 + light
    assert CRITIC(video, ["x"]).values.item() < 1e-6


def test_faster_is_more():
    scores = [CRITIC(moving(speed), ["x"]).values.item() for speed in (0, 1, 2, 3)]
    assert scores == sorted(scores)
    assert scores[1] > 0.02


def test_flicker_does_not_hide_motion():
    light = torch.tensor([1, -1] * 4).view(1, 8, 1, 1, 1) * 0.2
    assert torch.allclose(CRITIC(moving(2) + light, ["x"]).values, CRITIC(moving(2), ["x"]).values, atol=1e-6)
