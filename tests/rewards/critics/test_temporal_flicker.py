import torch

from besttake.rewards import load_reward

CRITIC = load_reward("temporal-flicker")


def test_light_that_alternates_by_hand():
    video = torch.zeros(1, 5, 3, 16, 16)
    video[:, 1::2] = 0.4  # a change of 0.4 of a range of 2
    assert torch.isclose(CRITIC(video, ["x"])["temporal flicker"], torch.tensor(0.8)).all()


def test_still_picture_has_none():
    still = torch.rand(1, 1, 3, 16, 16).expand(-1, 6, -1, -1, -1)
    assert CRITIC(still, ["x"]).values.item() == 1


def test_moving_body_is_no_flicker():
    video = torch.zeros(1, 8, 3, 32, 32)
    for t in range(8):
        video[:, t, 0, 10:18, 2 * t : 2 * t + 8] = 1
    assert CRITIC(video, ["x"]).values.item() == 1


def test_more_flicker_scores_less():
    sign = torch.tensor([1, -1, 1, -1, 1.0]).view(1, 5, 1, 1, 1)
    video = torch.rand(1, 1, 3, 16, 16) * 0.5
    scores = [CRITIC(video + amount * sign, ["x"]).values.item() for amount in (0.0, 0.05, 0.1, 0.2)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
