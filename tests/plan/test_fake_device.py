import copy

import pytest
import torch
from torch import nn

from besttake.plan.fake_device import CARD, SMALL, fake_device, known_values


def test_large_tensors_take_no_memory_and_have_no_numbers():
    with fake_device():
        large = torch.ones(1_000_000, 1_000_000, device=CARD)  # 4 TB
        assert large.device == CARD
        assert known_values(large) is None
        with pytest.raises(NotImplementedError, match="unknown"):
            large.sum().item()


def test_small_tensors_keep_their_numbers():
    with fake_device():
        numbers = torch.arange(4, device=CARD)
        numbers[1:] += 10
        assert numbers.tolist() == [0, 11, 12, 13]
        assert (numbers > 11).nonzero().flatten().tolist() == [2, 3]
        assert torch.zeros(SMALL, device=CARD)[0].item() == 0


def test_numbers_that_are_written_over_by_unknown_ones_are_forgotten():
    with fake_device():
        small = torch.zeros(3, device=CARD)
        small.copy_(torch.zeros(3, SMALL, device=CARD)[:, 0])
        assert known_values(small) is None


def test_a_mask_of_known_numbers_picks_rows_of_unknown_ones():
    with fake_device():
        large = torch.empty(4, SMALL, device=CARD)
        mask = torch.tensor([True, False, True, True]).to(CARD)
        assert large[mask].shape == (3, SMALL)


@pytest.mark.parametrize("count", [1, 2])
def test_few_numbers_are_moved_as_many_are(count):
    with fake_device():
        moved = torch.arange(count).to(CARD)
        assert (moved.device, moved[0].device) == (CARD, CARD)
        assert torch.tensor([7.0] * count).to(CARD)[0].item() == 7


def test_the_host_is_another_device():
    with fake_device(), pytest.raises(RuntimeError, match="same device"):
        torch.empty(SMALL, 2) + torch.empty(SMALL, 2, device=CARD)


def test_modules_are_moved_and_copied_as_elsewhere():
    with fake_device():
        layer = nn.Linear(300, 300).to(CARD)
        moved = copy.deepcopy(layer).to("cpu", torch.bfloat16)
        layer.bias.data = layer.bias.data.to("cpu")
        assert (layer.weight.device, layer.bias.device) == (CARD, torch.device("cpu"))
        assert (moved.weight.device, moved.weight.dtype) == (torch.device("cpu"), torch.bfloat16)


def test_small_modules_keep_their_numbers_when_they_are_moved():
    with fake_device():
        layer = nn.Linear(3, 3).to(CARD, torch.bfloat16)
        assert layer(torch.ones(1, 3, dtype=torch.bfloat16, device=CARD))[0, 0].item() != 0


def test_an_optimizer_steps():
    with fake_device():
        layer = nn.Linear(300, 300, device=CARD)
        optimizer = torch.optim.AdamW(layer.parameters(), foreach=True)
        layer(torch.empty(2, 300, device=CARD)).sum().backward()
        optimizer.step()
        assert optimizer.state[layer.weight]["step"].item() == 1
