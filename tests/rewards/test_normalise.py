import pytest
import torch

from besttake.rewards.normalise import MEMORY, RunningNormaliser, within_prompts


def test_within_prompts_by_hand():
    values = torch.tensor([[1.0], [3.0], [9.0], [9.0], [9.0], [7.0]])
    there = torch.tensor([True, True, True, True, True, False])
    z = within_prompts(values, ["a", "a", "b", "b", "c", "c"], there)
    assert z[:, 0].tolist() == pytest.approx([-1, 1, 0, 0, 0, 0], abs=1e-3)


def test_running_mean_and_deviation_are_those_of_all_that_went_by():
    values = torch.randn(90, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50]) + 3
    running = RunningNormaliser(2)
    for part in values.split(7):
        last = running(part, torch.ones(len(part), dtype=torch.bool))
    exact = values.double()
    torch.testing.assert_close(running.mean, exact.mean(0))
    torch.testing.assert_close(running.square, exact.var(0, correction=0))
    torch.testing.assert_close(
        last, ((part - exact.mean(0)) / exact.std(0, correction=0)).float(), atol=1e-3, rtol=1e-3
    )


def test_what_lies_long_back_is_forgotten():
    running, everyone = RunningNormaliser(1), torch.ones(64, dtype=torch.bool)
    for level in (0.0, 10.0):
        for _ in range(6 * MEMORY // 64):
            running(torch.full((64, 1), level), everyone)
    assert running.mean.item() > 9.9
