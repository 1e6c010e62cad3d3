"""`rollout.compile: auto`: compile the denoiser's blocks if the run is long enough to pay for it.

After a run's first step it is known how many passes of the network a step has, and a pass is timed. If it pays even
with a cautious gain, the blocks are compiled and a pass is timed again; if it then saves less than compiling takes,
they run uncompiled again. The log says what was found and decided.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from besttake.models.compiled import compile_blocks, is_compiled, stop_compiling
from besttake.models.policy import Policy
from besttake.models.sharding import is_sharded
from besttake.runtime.distributed import broadcast_from_main, context_mesh
from besttake.types import Condition, Latent, Time

log = logging.getLogger(__name__)

GAIN = 0.08
"""Share of a pass's time that compiling saves at least: what makes a trial worth while."""

SECONDS = 60.0
"""A cautious estimate of the time that compiling takes, before it is known."""

KINDS = 4
"""Kinds of passes that are compiled: sampling, with gradients, and the reference before and after its first change."""


class AutoCompile:
    """Decides after a run's first step whether the blocks are compiled.

    Args:
        seconds_of: times a call, a test's stand-in.
    """

    def __init__(self, policy: Policy, seconds_of: Callable[[Callable[[], object]], float] | None = None):
        self.policy, self.passes = policy, 0
        self._inputs: tuple[Latent, Time, Condition] | None = None
        self.seconds_of = seconds_of or (lambda work: _seconds(work, policy.model.device))
        policy.on_predict = self._observe

    def _observe(self, x_t: Latent, t: Time, condition: Condition) -> None:
        self.passes += 1
        if self._inputs is None or len(x_t) >= len(self._inputs[0]):
            self._inputs = x_t.detach(), t, condition

    def begin_step(self) -> None:
        """Count from here: what came before was no training step."""
        self.passes, self._inputs = 0, None

    def decide(self, steps: float) -> None:
        """Compile the blocks if it pays.

        Args:
            steps: remaining steps of the run, each with as many passes as were observed until now.
        """
        self.policy.on_predict = None
        if broadcast_from_main(lambda: self._pays(self.passes * steps)):
            for denoiser in self.policy.model.denoisers.values():
                compile_blocks(denoiser)

    def _pays(self, passes: float) -> bool:
        denoisers = list(self.policy.model.denoisers.values())
        sharded = any(is_sharded(weight) for denoiser in denoisers for weight in denoiser.parameters())
        alone = not sharded and context_mesh() is None  # else a pass needs all processes
        if self._inputs is None or not alone or any(map(is_compiled, denoisers)):
            return False
        plain = min(self.seconds_of(self._pass) for _ in range(2))
        if GAIN * plain * passes < KINDS * SECONDS:
            log.info("blocks are not compiled: %.0f passes of %.2f s are too few to pay for it", passes, plain)
            return False
        for denoiser in denoisers:
            compile_blocks(denoiser)
        first, compiled = self.seconds_of(self._pass), self.seconds_of(self._pass)
        saved, cost = (plain - compiled) * passes, KINDS * max(first - compiled, 0.0)
        pays = saved > cost and any(map(is_compiled, denoisers))
        log.info(
            "blocks are %s: a pass takes %.3f s compiled and %.3f s plain, which would save %.0f s of %.0f passes, and "
            "compiling takes about %.0f s",
            *("compiled" if pays else "not compiled", compiled, plain, saved, passes, cost),
        )
        if not pays:
            for denoiser in denoisers:
                stop_compiling(denoiser)
        return pays

    @torch.no_grad()
    def _pass(self) -> None:
        if self._inputs:
            self.policy.model.parts.to_device()
            self.policy.predict(*self._inputs)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
