"""Several graphics cards, of which one is imagined: what the other processes would say is made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from besttake import distributed
from besttake.distributed import Group, ParallelConfig


@contextmanager
def first_of(size: int, config: ParallelConfig) -> Iterator[None]:
    """Within this context this process is the first of so many, each with the same share of the work.

    Raises:
        ValueError: the weights are to be sharded.
    """
    if config.shard > 1:
        raise ValueError(
            f"parallel.shard is {config.shard}: the plan does not know sharded weights; plan with parallel.shard 1, "
            f"and take weights, reference, gradients and optimizer {config.shard} times less"
        )
    if size == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    copies = init_device_mesh("cpu", (size, 1), mesh_dim_names=("replicate", "shard"))
    distributed._group = Group(config, 0, size, dist.group.WORLD, copies)
    try:
        yield
    finally:
        distributed._group = None
        dist.destroy_process_group()
