"""The first of several processes on a fake device: what the others would send is made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from besttake.plan.fake_device import CARD
from besttake.runtime import distributed
from besttake.runtime.distributed import ParallelConfig, make_group

FSDP = "torch.distributed.fsdp._fully_shard._fully_shard"


@contextmanager
def first_of(size: int, config: ParallelConfig) -> Iterator[None]:
    """Within this context this process is the first of so many, each with the same share of the work.

    Raises:
        ValueError: their number is no multiple of `config.shard`, or they split clips' tokens.
    """
    if config.context > 1:
        raise ValueError(f"parallel.context is {config.context}, and what that saves is not foreseen here; set it to 1")
    if size % config.shard:
        raise ValueError(f"parallel.shard is {config.shard}, and gpus {size}; expected a multiple of {config.shard}")
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    everyone: Any = dist.group.WORLD
    # FSDP2 takes the device from the mesh, and a mesh of CPUs knows no second one.
    with patch(f"{FSDP}._get_device_from_mesh", return_value=CARD):
        try:
            if size > 1:
                distributed._group = make_group(config, "cpu", everyone, everyone)
            yield
        finally:
            distributed._group = None
            dist.destroy_process_group()
