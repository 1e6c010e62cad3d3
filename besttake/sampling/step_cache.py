"""diffusers' step caches: what a denoiser computed at one step of sampling is used again at the steps after it.

They save passes at the price of other videos, so that they are for rollouts alone: a cache is there within a context,
begins empty, and leaves nothing behind that a training forward could meet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import TaylorSeerCacheConfig

from besttake.runtime.configuration import require
from besttake.types import Condition, Latent, Time


@dataclass(frozen=True)
class CacheConfig:
    """Which of diffusers' step caches."""

    name: Literal["none", "taylorseer"] = "none"
    """taylorseer: the network's output is extrapolated between computed steps (arXiv 2503.06923)."""
    every: int = 3
    """Steps from one computed output to the next."""

    def __post_init__(self):
        require(self.every >= 2, "every", self.every, "2 or more")


Predict = Callable[[Latent, Time, Condition], Latent]
CachedPredict = Callable[[str, Latent, Time, Condition], Latent]
"""A prediction in float32; a cache keeps those of each name apart ("conditional", "unconditional")."""


@contextmanager
def step_cache(denoisers: Collection[Any], config: CacheConfig, predict: Predict) -> Iterator[CachedPredict]:
    """Within this context these denoisers have a cache, empty at first, that predictions go through.

    Raises:
        ValueError: a denoiser has no such cache.
    """
    caching = denoisers if config.name != "none" else ()

    def cached(which: str, x_t: Latent, t: Time, condition: Condition) -> Latent:
        with ExitStack() as stack:
            for denoiser in caching:
                stack.enter_context(denoiser.cache_context(which))
            return predict(x_t, t, condition).float()

    with ExitStack() as stack:
        for denoiser in caching:
            if not hasattr(denoiser, "enable_cache"):
                raise ValueError(f"{type(denoiser).__name__} has no step caches; leave rollout.cache.name at 'none'")
            # "lite" hooks the network's last layer; the full variant looks for names of layers that video models lack
            denoiser.enable_cache(
                TaylorSeerCacheConfig(config.every, 4, taylor_factors_dtype=torch.float32, use_lite_mode=True)
            )
            stack.callback(denoiser.disable_cache)
        yield cached
