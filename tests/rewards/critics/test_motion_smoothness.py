import torch

from besttake.rewards import load_reward

CRITIC = load_reward("motion-smoothness")


def slide(offsets):
    """A soft blob whose centre lies at 16 + offset."""
    x = torch.arange(32.0)
    rows = [torch.exp(-((x - 16 - offset) ** 2) / 18) for offset in offsets]
    return torch.stack(rows).view(1, -1, 1, 1, 32).expand(-1, -1, 3, 32, -1)


def test_one_odd_frame_by_hand():
    video = torch.zeros(1, 3, 3, 8, 8)
    video[:, 1] = 0.5  # a quarter of the range off the mean of its neighbours
    assert CRITIC(video, ["x"]).values.item() == 0.75


def test_light_that_fades_evenly_is_smooth():
    fade = torch.linspace(-0.5, 0.5, 5).view(1, 5, 1, 1, 1).expand(-1, -1, 3, 8, 8)
    assert CRITIC(fade, ["x"]).values.item() > 1 - 1e-6


def test_shaking_costs_by_its_strength():
    path, shake = torch.linspace(-4, 4, 9), torch.tensor([0, 1, -1, 1, 0, -1, 1, -1, 0.0])
    scores = [CRITIC(slide(path + amount * shake), ["x"]).values.item() for amount in (0, 0.5, 1, 2)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[-1] > 0.02
