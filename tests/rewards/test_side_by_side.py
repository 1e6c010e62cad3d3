import pytest
import torch

from besttake.rewards import load_reward
from besttake.rewards.side_by_side import SideBySide

VIDEOS = torch.rand(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_what_several_critics_say_stands_side_by_side():
    critics = {name: load_reward(name) for name in ("temporal-flicker", "dynamic-degree")}
    both = SideBySide(critics)
    assert both.dimensions == ("temporal-flicker/temporal flicker", "dynamic-degree/dynamic degree")
    assert set(both.card.ranges) == set(both.dimensions)
    score = both(VIDEOS, ["a", "b"], 8.0)
    for name, critic in critics.items():
        alone = critic(VIDEOS, ["a", "b"], 8.0)
        assert torch.equal(score[f"{name}/{alone.dimensions[0]}"], alone.values[:, 0])


def test_a_critic_that_gives_no_score_is_named():
    class Broken:
        name, dimensions, differentiable = "broken", ("x",), False
        card = load_reward("dynamic-degree").card

        def __call__(self, videos, prompts, fps=8.0):
            return None

    with pytest.raises(ValueError, match="critic broken returned NoneType, expected a Score"):
        SideBySide({"a": Broken()})(VIDEOS, ["a", "b"])
