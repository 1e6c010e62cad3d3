"""Random numbers keyed on what they are for, so that they depend on neither rank, batch nor earlier draws."""

from __future__ import annotations

import numpy as np
import torch


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the key only, such as (seed, step) or (seed, step, prompt, candidate).

    Args:
        key: numbers from 0 on. Zeros at the end do not count: (0, 1) and (0, 1, 0) are one key.
    """
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(state)
