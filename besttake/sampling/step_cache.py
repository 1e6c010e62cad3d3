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
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

from besttake.runtime.configuration import require
from besttake.types import Condition, Latent, Time


@dataclass(frozen=True)
class CacheConfig:
    """Which of diffusers' step caches, and how bold."""

    name: Literal["none", "first-block", "taylorseer", "pyramid"] = "none"
    """first-block: blocks are left out while the first one's answer hardly changes, in all of a batch together;
    taylorseer: the network's answer is extrapolated between steps; pyramid: attention is used again in the middle."""
    threshold: float = 0.1
    """Of first-block: the relative change of the first block's answer below which the others are left out."""
    every: int = 3
    """Of taylorseer and pyramid: steps to a computed one."""

    def __post_init__(self):
        require(self.threshold > 0, "threshold", self.threshold, "a number above 0")
        require(self.every >= 2, "every", self.every, "2 or more")


Predict = Callable[[Latent, Time, Condition], Latent]
Ask = Callable[[str, Latent, Time, Condition], Latent]
"""A prediction in float32; a cache keeps those of each name apart ("told", "untold")."""


@contextmanager
def step_cache(denoisers: Collection[Any], config: CacheConfig, predict: Predict) -> Iterator[Ask]:
    """Within this context these denoisers have a cache, empty at first, that predictions go through.

    Raises:
        ValueError: a denoiser has no such cache.
    """
    now = [0.0]
    caching = denoisers if config.name != "none" else ()

    def ask(which: str, x_t: Latent, t: Time, condition: Condition) -> Latent:
        with ExitStack() as stack:
            for denoiser in caching:
                now[0] = 1000 * t[0].item()
                stack.enter_context(denoiser.cache_context(which))
            return predict(x_t, t, condition).float()

    with ExitStack() as stack:
        for denoiser in caching:
            if not hasattr(denoiser, "enable_cache"):
                raise ValueError(f"{type(denoiser).__name__} has no step caches; leave rollout.cache.name at 'none'")
            denoiser.enable_cache(_of_diffusers(config, lambda: now[0]))
            stack.callback(denoiser.disable_cache)
        yield ask


def _of_diffusers(config: CacheConfig, timestep: Callable[[], float]) -> Any:
    if config.name == "first-block":
        return FirstBlockCacheConfig(config.threshold)
    if config.name == "pyramid":
        return PyramidAttentionBroadcastConfig(config.every, current_timestep_callback=timestep)
    # "lite" hooks the network's last layer; the full variant looks for names of layers that video models have not
    return TaylorSeerCacheConfig(config.every, 4, taylor_factors_dtype=torch.float32, use_lite_mode=True)
