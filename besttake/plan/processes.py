"""A fake process group: this process is the first of several, and collectives return made-up data."""

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
def fake_process_group(size: int, config: ParallelConfig) -> Iterator[None]:
    """Context in which this process is rank 0 of `size`, each with an equal share of the work.

    Raises:
        ValueError: `size` is not a multiple of `config.shard`, or context parallelism is on.
    """
    if config.context > 1:
        raise ValueError(f"parallel.context is {config.context}, which `besttake plan` does not support; set it to 1")
    if size % config.shard:
        raise ValueError(f"parallel.shard is {config.shard}, and gpus {size}; expected a multiple of {config.shard}")
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    everyone: Any = dist.group.WORLD
    # FSDP2 takes the device from the mesh, and a CPU mesh has only one device.
    with patch(f"{FSDP}._get_device_from_mesh", return_value=CARD):
        try:
            if size > 1:
                distributed._group = make_group(config, "cpu", everyone, everyone)
            yield
        finally:
            distributed._group = None
            dist.destroy_process_group()
