"""PyTorch's counter of operations, as benchmarks use it."""

import gc
import weakref

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from besttake.plan.measured import flop_counter


def a_checkpointed_step(network, seen):
    def block(x):
        inner = network(x)
        seen.append(weakref.ref(inner.untyped_storage()))
        return inner.relu()

    checkpoint(block, torch.ones(3, 4, requires_grad=True), use_reentrant=False).sum().backward()


def test_it_counts_what_pytorchs_does_and_keeps_no_recomputed_graph():
    network, seen = nn.Linear(4, 5), []
    with FlopCounterMode(display=False) as theirs:
        a_checkpointed_step(network, [])
    with flop_counter() as ours:
        a_checkpointed_step(network, seen)
        gc.collect()
        assert len(seen) == 2  # forward and recomputed
        assert not any(part() for part in seen)
    assert ours.get_total_flops() == theirs.get_total_flops() > 0


def test_it_knows_addmm_in_place():
    with flop_counter() as counter:
        torch.zeros(3, 5).addmm_(torch.ones(3, 4), torch.ones(4, 5))
    assert counter.get_total_flops() == 2 * 3 * 4 * 5
