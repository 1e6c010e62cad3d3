"""diffusers' step caches: outputs of a denoiser at one sampling step are reused at the following steps.

They are faster but change the videos, so they are used for rollouts only. A cache exists within a context, starts
empty, and is removed before training.
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
    """Step cache of diffusers."""

    name: Literal["none", "taylorseer"] = "none"
    """Step cache: taylorseer extrapolates the network's output between computed steps (arXiv 2503.06923)."""
    every: int = 3
    """Steps between computed outputs."""

    def __post_init__(self):
        require(self.every >= 2, "every", self.every, "2 or more")


Predict = Callable[[Latent, Time, Condition], Latent]
CachedPredict = Callable[[str, Latent, Time, Condition], Latent]
"""A prediction in float32; the cache is separate for each name ("conditional", "unconditional")."""


@contextmanager
def step_cache(denoisers: Collection[Any], config: CacheConfig, predict: Predict) -> Iterator[CachedPredict]:
    """Context in which the denoisers have an empty step cache; yields `predict` with it.

    Raises:
        ValueError: a denoiser does not support step caches.
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
                raise ValueError(
                    f"{type(denoiser).__name__} does not support step caches; set rollout.cache.name to none"
                )
            # "lite" hooks the network's last layer; the full variant expects layer names that video models lack
            denoiser.enable_cache(
                TaylorSeerCacheConfig(config.every, 4, taylor_factors_dtype=torch.float32, use_lite_mode=True)
            )
            stack.callback(denoiser.disable_cache)
        yield cached
