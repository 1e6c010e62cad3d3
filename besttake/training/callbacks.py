"""Callbacks: a user's functions that a run calls, whatever its algorithm.

with callbacks(on_step=lambda run, metrics: print(run.step, metrics.get("train/loss"))):
    train(config)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from besttake.runtime.distributed import raise_on_all

if TYPE_CHECKING:
    from besttake.training.run import Run

Callback = Callable[["Run", Mapping[str, Any]], object]
"""Called with the run, and the metrics just logged, by name; `run.step` is the number of steps that are over."""


@dataclass(frozen=True)
class Callbacks:
    """What a run calls, on every process: after each step, and after each validation pass."""

    on_step: Callback | None = None
    on_validation: Callback | None = None

    def step_is_over(self, run: Run, metrics: Mapping[str, Any]) -> None:
        _call(self.on_step, run, metrics)

    def validated(self, run: Run, metrics: Mapping[str, Any]) -> None:
        _call(self.on_validation, run, metrics)


_current: ContextVar[Callbacks] = ContextVar("callbacks", default=Callbacks())  # noqa: B039 - it is frozen


@contextmanager
def callbacks(on_step: Callback | None = None, on_validation: Callback | None = None) -> Iterator[None]:
    """Every run that is begun within calls these. An error of theirs stops the run with a checkpoint saved."""
    for name, callback in (("on_step", on_step), ("on_validation", on_validation)):
        if callback is not None and not callable(callback):
            raise ValueError(f"{name} is {callback!r}; expected a function of the run and its metrics")
    token = _current.set(Callbacks(on_step, on_validation))
    try:
        yield
    finally:
        _current.reset(token)


def current_callbacks() -> Callbacks:
    """Those of the `callbacks` context that this is within."""
    return _current.get()


def _call(callback: Callback | None, run: Run, metrics: Mapping[str, Any]) -> None:
    if callback:
        with raise_on_all():
            callback(run, metrics)
