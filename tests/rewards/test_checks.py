from dataclasses import dataclass

import pytest
import torch

from besttake.rewards.checks import parse_weights, score_checked
from besttake.rewards.partial import PartialScore
from besttake.types import Score

VIDEOS, PROMPTS = torch.zeros(2, 4, 3, 8, 8), ["a ball falls", "a ring spins"]


@dataclass
class Says:
    """A critic that returns the given scores."""

    values: torch.Tensor
    scored: tuple[str, ...] = ("quality", "motion")
    name: str = "parrot"
    dimensions: tuple[str, ...] = ("quality", "motion")
    differentiable: bool = False

    def __call__(self, videos, prompts, fps=8.0):
        return Score(self.values, self.scored)


def test_good_score_passes_unchanged():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert score_checked(Says(values), VIDEOS, PROMPTS).values is values


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_number_that_is_not_finite_names_critic_prompt_and_dimension(bad):
    with pytest.raises(ValueError, match=r"parrot.*'motion'.*'a ring spins'"):
        score_checked(Says(torch.tensor([[0.0, 0.0], [0.0, bad]])), VIDEOS, PROMPTS)


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        (Says(torch.zeros(3, 2)), r"\(3, 2\), expected \(2, 2\)"),
        (Says(torch.zeros(2, 1)), r"\(2, 1\), expected \(2, 2\)"),
        (Says(torch.zeros(2)), r"\(2,\), expected \(2, 2\)"),
        (Says(torch.zeros(2, 2, dtype=torch.float16)), "float16 scores, expected torch.float32"),
        (Says(torch.zeros(2, 2, dtype=torch.long)), "int64 scores, expected torch.float32"),
        (Says(torch.zeros(2, 2), scored=("quality", "colour")), ", expected"),
    ],
)
def test_malformed_score_is_refused(critic, message):
    with pytest.raises(ValueError, match=f"parrot.*{message}"):
        score_checked(critic, VIDEOS, PROMPTS)


def test_bare_tensor_is_no_score():
    critic = Says(torch.zeros(2, 2))
    critic.__class__ = type("Bare", (Says,), {"__call__": lambda self, videos, prompts, fps: self.values})
    with pytest.raises(ValueError, match="returned Tensor, expected a Score"):
        score_checked(critic, VIDEOS, PROMPTS)


def test_prompts_must_match_videos():
    with pytest.raises(ValueError, match="2 videos but 1 prompts"):
        score_checked(Says(torch.zeros(2, 2)), VIDEOS, PROMPTS[:1])


def test_gradient_survives_the_check():
    values = torch.zeros(2, 2, requires_grad=True)
    score_checked(Says(values), VIDEOS, PROMPTS).values.sum().backward()
    assert values.grad is not None


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("motion", {"motion": 1.0}),
        ({"quality": 2, "motion": -0.5}, {"quality": 2.0, "motion": -0.5}),
        ({}, {"quality": 0.5, "motion": 0.5}),
    ],
)
def test_weights(weights, expected):
    assert parse_weights(Says(torch.zeros(2, 2)), weights) == expected


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("beauty", "no dimension 'beauty'; its dimensions: quality, motion"),
        ({"quality": 1.0, "beauty": 1.0}, "no dimension 'beauty'"),
        ({"quality": float("nan")}, "weight of 'quality' is nan"),
        ({"quality": "much"}, "weight of 'quality' is 'much'"),
        ({"quality": 0.0}, "all weights are 0"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(Says(torch.zeros(2, 2)), weights)


def test_a_weighted_combination():
    score = Score(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), ("quality", "motion"))
    assert score.combine({"motion": 2.0, "quality": -1.0}).tolist() == [3.0, 7.0]


class Silent(Says):
    """Scores the first video only."""

    def __call__(self, videos, prompts, fps=8.0):
        return PartialScore(self.values, self.dimensions, torch.tensor([True, False]))


def test_an_abstention_is_passed_on_only_to_those_who_can_do_without_a_score():
    critic = Silent(torch.zeros(2, 2))
    assert score_checked(critic, VIDEOS, PROMPTS, abstentions=True).scored.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"critic .* abstained on 1 of 2 videos, the first for"):
        score_checked(critic, VIDEOS, PROMPTS)
