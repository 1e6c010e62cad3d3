"""Termination signals: the state of a run is saved before the process ends.

SIGTERM, SIGINT (Ctrl-C), SIGHUP, and SIGUSR1, which clusters send before preempting a job, run a handler in the main
thread between two Python instructions. If that thread is blocked, in a long backward pass or waiting for a lost
process, a second thread saves a little later and ends the process.
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

HANDLER_SECONDS = 2.0
"""Seconds for the main thread to run its handler."""

DUPLICATE_SECONDS, TORCHRUN_DUPLICATE_SECONDS = 0.5, 3.0
"""Seconds after a signal in which another one does not count: the parent process (such as `timeout`) may forward it."""

SAVE_SECONDS = 600.0
"""Seconds that saving may take before the process is ended anyway."""

EXIT_SECONDS = 10.0
"""Seconds for the main thread to print a message and unwind after saving."""

WRITE_SECONDS = 1.0
"""Seconds for writing the last message if nobody reads it."""


class _SignalHandler:
    """State of the signal handling.

    Attributes:
        saves: save functions, the innermost last; each returns a message.
        lock: held while the saved state is modified or written; required for saving at a signal.
        depth: how often the main thread has acquired `lock`.
        number: the signal received by the handler; 0 = none.
        answered: whether the signal is being handled.
    """

    def __init__(self) -> None:
        self.saves: list[Callable[[], str]] = []
        self.lock, self.depth, self.number, self.answered = threading.RLock(), 0, 0, False
        self.handling, self.saved, self.finished = threading.Event(), threading.Event(), threading.Event()

    def handle(self, number: int, _: object) -> None:
        if self.number:
            return  # `listen`, which is never blocked, decides whether a second one counts
        self.number = number
        self.handling.set()
        if not self.depth:
            self.stop()

    def stop(self) -> None:
        """Save, print a message, and raise the exception that ends the process; in the main thread."""
        self.answered = True
        with self.lock:  # if the other thread has it, the process ends here
            message = self.save(self.number)
        self.saved.set()
        _print(message)
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + self.number)

    def save(self, number: int) -> str:
        """Save the state if possible; returns a message."""
        try:
            message = self.saves[-1]()
        except Exception as error:
            message = f"nothing could be saved: {type(error).__name__}: {error}"
        return f"stopped by {signal.Signals(number).name}" + (f": {message}" if message else "")

    def listen(self, descriptor: int) -> None:
        """In a separate thread: receive every signal at once, even if the main thread is blocked."""
        first_time = 0.0
        while received := os.read(descriptor, 1):
            number, now = received[0], time.monotonic()
            if signal.getsignal(number) != self.handle:
                continue
            if not first_time:
                first_time = now
                threading.Thread(target=self.rescue, args=(number,), daemon=True).start()
            elif now - first_time > (TORCHRUN_DUPLICATE_SECONDS if _under_torchrun() else DUPLICATE_SECONDS):
                _exit(number, "stopped at once")
        os.close(descriptor)

    def rescue(self, number: int) -> None:
        """In a separate thread: save and exit if the main thread does not."""
        if not self.handling.wait(HANDLER_SECONDS) and self.lock.acquire(timeout=SAVE_SECONDS):
            _exit(number, self.save(number))
        if not self.saved.wait(SAVE_SECONDS):
            _exit(number, f"stopped by {signal.Signals(number).name}: it took longer than {SAVE_SECONDS:g} s to save")
        if not self.finished.wait(EXIT_SECONDS):
            _exit(number, "")


_handler: _SignalHandler | None = None


@contextmanager
def save_on_signal(save: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Context in which a termination signal calls `save` before it ends the process.

    The main thread ends with KeyboardInterrupt after Ctrl-C, otherwise with SystemExit(128 + signal number); a second
    signal ends the process at once. Signals that were ignored before (for instance by nohup) stay ignored.

    Args:
        save: called between any two instructions or in another thread, except while signals are blocked; returns a
            message. Contexts may be nested; only the innermost function is called.
    """
    global _handler
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have signal handlers
        return
    if _handler:
        _handler.saves.append(save)
        try:
            yield
        finally:
            _handler.saves.pop()
        return
    handler = _handler = _SignalHandler()
    handler.saves.append(save)
    if _under_torchrun():
        _die_with_launcher()
    read, write = os.pipe()
    os.set_blocking(write, False)
    threading.Thread(target=handler.listen, args=(read,), daemon=True).start()
    descriptor = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: before for number, before in handlers.items() if before not in (signal.SIG_IGN, None)}
    for number in handlers:
        signal.signal(number, handler.handle)
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(descriptor)
        handler.finished.set()
        os.close(write)
        _handler = None


def block_signals() -> None:
    """Delay signals until `unblock_signals`, while the saved state is modified."""
    if _handler:
        _handler.lock.acquire()
        _handler.depth += 1


def unblock_signals() -> None:
    """Handle signals again; one received since `block_signals` is handled now."""
    if _handler:
        _handler.depth -= 1
        _handler.lock.release()
        if _handler.number and not _handler.depth and not _handler.answered:
            _handler.stop()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Context in which signals are delayed."""
    block_signals()
    try:
        yield
    finally:
        unblock_signals()


def is_stopping() -> bool:
    """Whether a signal was received, and the state is saved or being saved."""
    return bool(_handler and _handler.number)


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _die_with_launcher() -> None:
    """On Linux, receive SIGTERM when `torchrun` dies, for instance by SIGKILL or a signal that it does not forward."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def _print(message: str) -> None:
    """Print a message in the main thread; if the terminal is closed, discard all further output."""
    try:
        err.print(message, style="bold", soft_wrap=True)
    except (OSError, SystemExit):  # rich raises SystemExit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
    except RuntimeError:  # the signal interrupted a write to the same stream
        _write(message)


def _write(message: str) -> None:
    """Write directly to standard error, if possible."""

    def write() -> None:
        with suppress(OSError):
            os.write(2, message.encode())

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(WRITE_SECONDS)


def _exit(number: int, message: str) -> None:
    """End the process at once, regardless of its threads."""
    try:
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # the cursor, which a progress bar hides
        if sys.stderr:
            _write(f"{show_cursor}\n{message}\n")
    finally:
        os._exit(128 + number)
