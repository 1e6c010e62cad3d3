import pytest
import torch

from besttake.rewards import load_reward
from besttake.rewards.calibrate import calibrate, repeat_scores

VIDEOS = torch.rand(4, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
PROMPTS = ["a ball"] * 4


def noisy(times, b, noise, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, generator=generator) * spread + noise * torch.randn(times, b, generator=generator)


def test_the_margin_of_two_candidates_is_that_of_a_difference_of_two_normal_numbers():
    found = calibrate(noisy(8, 400, 0.5))
    assert found.margin == pytest.approx(1.96 * 0.5 * 2**0.5, rel=0.05)
    assert found.noise == pytest.approx(0.5, rel=0.05)
    assert found.spread == pytest.approx(1.0, rel=0.1)
    assert found.ties == 0


@pytest.mark.parametrize("candidates", [2, 4, 8])
def test_equally_good_candidates_pass_the_margin_as_often_as_the_level_says(candidates):
    margin = calibrate(noisy(4, 200, 0.3), candidates, level=0.05).margin
    equal = noisy(1, 4000 * candidates, 0.3, seed=1, spread=0.0).view(-1, candidates)
    passed = ((equal.amax(1) - equal.amin(1)) > margin).float().mean().item()
    assert 0.03 < passed < 0.07


def test_a_critic_that_is_sure_needs_no_margin():
    scores = torch.tensor([1.0, 2.0, 3.0]).expand(5, 3)
    found = calibrate(scores)
    assert (found.margin, found.noise, found.flips) == (0, 0, 0)
    assert found.spread == pytest.approx(1.0)


def test_a_judge_of_few_words_ties_and_a_judge_that_guesses_flips():
    assert calibrate(torch.tensor([4.0, 4.0, 2.0]).expand(2, 3)).ties == pytest.approx(1 / 3)
    assert calibrate(noisy(6, 60, 1.0, spread=0.0)).flips == pytest.approx(0.5, abs=0.05)


def test_grain_that_nobody_sees_moves_a_critic_a_little():
    reward = load_reward("motion-smoothness")
    seen = []

    def critic(videos, prompts, fps):
        seen.append((videos - VIDEOS).abs().max().item())
        return reward(videos, prompts, fps).values[:, 0]

    scores = repeat_scores(critic, VIDEOS, PROMPTS, times=5)
    assert scores.shape == (5, 4)
    assert 0 < max(seen) < 0.06
    assert 0 < calibrate(scores).margin < 0.01
    assert torch.equal(repeat_scores(critic, VIDEOS, PROMPTS, times=5), scores)
    assert calibrate(repeat_scores(critic, VIDEOS, PROMPTS, times=2, grain=0)).margin == 0


@pytest.mark.parametrize(
    ("shape", "candidates", "level"), [((1, 4), 2, 0.05), ((4, 1), 2, 0.05), ((4, 4), 1, 0.05), ((4, 4), 2, 1.0)]
)
def test_too_little_to_calibrate_by_is_refused(shape, candidates, level):
    with pytest.raises(ValueError, match=r"^(times is 1|videos is 1|candidates is 1|level is .*); expected "):
        calibrate(torch.rand(shape), candidates, level)
