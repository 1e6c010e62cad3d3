"""Muon in the parameters' own precision steps as PyTorch's, which computes in bfloat16."""

import pytest
import torch

from besttake.world.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_singular_values_come_near_one(shape):
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_it_steps_as_pytorchs_own():
    start = torch.randn(24, 40)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = Muon([ours], 0.02)
    other = torch.optim.Muon([theirs], 0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for i in range(3):
        ours.grad = torch.randn(24, 40, generator=torch.Generator().manual_seed(i))
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    step, expected = ours.detach() - start, theirs.detach() - start
    assert (step - expected).norm() < 0.03 * expected.norm()
