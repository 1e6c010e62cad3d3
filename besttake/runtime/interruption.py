"""Signals that end a process: whenever one comes, what was done is saved first.

SIGTERM, SIGINT (Ctrl-C), SIGHUP, and SIGUSR1, which a cluster sends before it preempts a job, run a handler in the
main thread, between two lines of Python. Where that thread is stuck, in a long backward pass or waiting for a process
that is gone, another one does the same a little later and ends the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from besttake.runtime.console import err

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]

GRACE = 2.0
"""Seconds that the main thread has to come to its handler."""

ONE, ONE_UNDER_TORCHRUN = 0.5, 3.0
"""Seconds after a signal within which whatever has started the process, `timeout` say, may pass it on: what comes then
is no second signal."""

LIMIT = 600.0
"""Seconds that saving may take before the process ends without."""

LEAVING = 10.0
"""Seconds that the main thread may then take to say so and leave what it was doing."""

SAYING = 1.0
"""Seconds that the last words may take where nobody reads them."""


class _Guard:
    """What is saved at a signal, and by whom.

    Attributes:
        saves: what is to be called, the innermost last; each returns what there is to say.
        lock: held while what is saved is changed or written; whoever saves at a signal needs it.
        depth: how many times over the main thread holds it.
        number: the signal that the handler has seen, 0 = none.
        answered: whether it is being answered already.
    """

    def __init__(self) -> None:
        self.saves: list[Callable[[], str]] = []
        self.lock, self.depth, self.number, self.answered = threading.RLock(), 0, 0, False
        self.noticed, self.saved, self.over = threading.Event(), threading.Event(), threading.Event()

    def handle(self, number: int, _: object) -> None:
        if self.number:
            return  # whether a second one counts, `listen` decides, which no work keeps from it
        self.number = number
        self.noticed.set()
        if not self.depth:
            self.stop()

    def stop(self) -> None:
        """Save, say so, and leave; in the main thread."""
        self.answered = True
        with self.lock:  # where the other thread has it, the process ends here
            told = self.save(self.number)
        self.saved.set()
        _say(told)
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt(told)
        raise SystemExit(128 + self.number)

    def save(self, number: int) -> str:
        """Save what there is, if that can be done; what to say."""
        try:
            told = self.saves[-1]()
        except Exception as error:
            told = f"nothing could be saved: {type(error).__name__}: {error}"
        return f"stopped by {signal.Signals(number).name}" + (f": {told}" if told else "")

    def listen(self, descriptor: int) -> None:
        """In a thread of its own: hear of every signal at once, whatever the main thread does."""
        came = 0.0
        while told := os.read(descriptor, 1):
            number, now = told[0], time.monotonic()
            if signal.getsignal(number) != self.handle:
                continue
            if not came:
                came = now
                threading.Thread(target=self.rescue, args=(number,), daemon=True).start()
            elif now - came > (ONE_UNDER_TORCHRUN if _under_torchrun() else ONE):
                _end(number, "stopped at once")
        os.close(descriptor)

    def rescue(self, number: int) -> None:
        """In a thread of its own: do what the main thread does not come to."""
        if not self.noticed.wait(GRACE) and self.lock.acquire(timeout=LIMIT):
            _end(number, self.save(number))
        if not self.saved.wait(LIMIT):
            _end(number, f"stopped by {signal.Signals(number).name}: it took longer than {LIMIT:g} s to save")
        if not self.over.wait(LEAVING):
            _end(number, "")


_guard: _Guard | None = None


@contextmanager
def save_on_signal(save: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Within this context a signal that ends the process calls `save` first, and then has it end.

    In the main thread that is by KeyboardInterrupt after Ctrl-C, and else by SystemExit with 128 + the signal's number;
    a second signal ends the process at once. One that was ignored before (by nohup, say) is ignored.

    Args:
        save: called between any two lines, or beside them in another thread, but not where signals are `held`.
            Returns what to say. Contexts may lie within one another: the innermost counts.
    """
    global _guard
    if threading.current_thread() is not threading.main_thread():
        yield  # no other can have handlers
        return
    if _guard:
        _guard.saves.append(save)
        try:
            yield
        finally:
            _guard.saves.pop()
        return
    guard = _guard = _Guard()
    guard.saves.append(save)
    if _under_torchrun():
        _die_with_launcher()
    read, write = os.pipe()
    os.set_blocking(write, False)
    threading.Thread(target=guard.listen, args=(read,), daemon=True).start()
    descriptor = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: before for number, before in handlers.items() if before not in (signal.SIG_IGN, None)}
    for number in handlers:
        signal.signal(number, guard.handle)
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(descriptor)
        guard.over.set()
        os.close(write)
        _guard = None


def block_signals() -> None:
    """From here to `release` signals wait: what would be saved is being changed."""
    if _guard:
        _guard.lock.acquire()
        _guard.depth += 1


def unblock_signals() -> None:
    """Signals are answered again; one that has come since `hold` is answered now."""
    if _guard:
        _guard.depth -= 1
        _guard.lock.release()
        if _guard.number and not _guard.depth and not _guard.answered:
            _guard.stop()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Within this context signals wait."""
    block_signals()
    try:
        yield
    finally:
        unblock_signals()


def is_stopping() -> bool:
    """Whether a signal has come, and what was done is saved or is just being saved."""
    return bool(_guard and _guard.number)


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _die_with_launcher() -> None:
    """Have Linux send SIGTERM when `torchrun` is gone, as after SIGKILL, or a signal that it does not pass on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def _say(told: str) -> None:
    """Tell what is saved, in the main thread; what is written to a terminal that is gone is lost from here on."""
    try:
        err.print(told, style="bold", soft_wrap=True)
    except (OSError, SystemExit):  # of which rich raises the latter
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
    except RuntimeError:  # the signal has come while the same was being written to
        _write(told)


def _write(told: str) -> None:
    """Write to standard error by itself, if that can be done."""

    def write() -> None:
        with suppress(OSError):
            os.write(2, told.encode())

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(SAYING)


def _end(number: int, told: str) -> None:
    """End the process, whatever its threads do."""
    try:
        shown = "\x1b[?25h" if os.isatty(2) else ""  # the cursor, which a progress bar hides
        if sys.stderr:
            _write(f"{shown}\n{told}\n")
    finally:
        os._exit(128 + number)
