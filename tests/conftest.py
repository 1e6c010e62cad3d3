"""What every test stands on: no network, one thread, the same random numbers each time, and `tests/fixtures.py`."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it is set before anything else
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # pytest-xdist has a process for every core

import gc
import random
from pathlib import Path

import pytest

SLOW = (
    "runtime/test_interruption.py",
    "contracts/test_algorithms.py",
    "runtime/test_distributed.py",
    "contracts/test_models.py",
    "plan/test_steps.py",
    "contracts/test_training.py",
    "commands/test_cli.py",
    "runtime/test_memory.py",
    "plan/test_block_cache.py",
    "rewards/critics/test_heldout.py",
    "contracts/test_rewards.py",
    "training/test_run.py",
    "test_notebooks.py",
    "test_recipes.py",
    "world/test_pretrain_denoiser.py",
    "rewards/remote/test_isolated.py",
    "models/test_loading.py",
    "test_extending.py",
)
"""Files that take longest, in their order; they come first, or one process would wait for another's last file."""


def pytest_configure(config: pytest.Config) -> None:
    """Import what the tests stand on, which takes ten seconds, only where tests run, not where they are distributed."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {Path(__file__).parent / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path, len(SLOW)))


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not scan it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_group_is_left():
    """A process that was a group by itself for one test is none in the next."""
    import torch.distributed as dist

    yield
    if dist.is_initialized():
        dist.destroy_process_group()
