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
"""Called with the run and the metrics just logged, by name; `run.step` is the number of completed steps."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls on every process, after each step and after each validation pass."""

    on_step: Callback | None = None
    on_validation: Callback | None = None

    def after_step(self, run: Run, metrics: Mapping[str, Any]) -> None:
        _call(self.on_step, run, metrics)

    def after_validation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        _call(self.on_validation, run, metrics)


_current: ContextVar[Callbacks] = ContextVar("callbacks", default=Callbacks())  # noqa: B039 - it is frozen


@contextmanager
def callbacks(on_step: Callback | None = None, on_validation: Callback | None = None) -> Iterator[None]:
    """Context whose runs call these functions. If one raises, the run saves a checkpoint and stops."""
    for name, callback in (("on_step", on_step), ("on_validation", on_validation)):
        if callback is not None and not callable(callback):
            raise ValueError(f"{name} is {callback!r}; expected a function of the run and its metrics")
    token = _current.set(Callbacks(on_step, on_validation))
    try:
        yield
    finally:
        _current.reset(token)


def current_callbacks() -> Callbacks:
    """The callbacks of the enclosing `callbacks` context."""
    return _current.get()


def _call(callback: Callback | None, run: Run, metrics: Mapping[str, Any]) -> None:
    if callback:
        with raise_on_all():
            callback(run, metrics)
