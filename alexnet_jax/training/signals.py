"""SIGINT and SIGTERM: a checkpoint and an end, or an end at once where there is nothing to save."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

GRACE = 3.0  # seconds until a process that should have ended is ended


class Stopped(BaseException):
    """A signal ended the run where it had nothing to save; no `Exception`, so that nothing swallows it."""


class Stop:
    """What the signals asked for.

    Attributes:
      signal: the first that came, or None.
      at_once: whether a signal ends the run without waiting for a step: nothing that it did is unsaved.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at_once = True
        self._at: float | None = None
        self._interrupts = 0

    def __bool__(self) -> bool:
        return self.signal is not None

    def seconds(self) -> float:
        """How long ago the first signal came; 0 if none did."""
        return 0.0 if self._at is None else time.monotonic() - self._at

    def _handle(self, number: int, _frame: Any) -> None:
        """In the main thread, between two of its Python instructions."""
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), time.monotonic()
            again = " (again: at once, without a checkpoint)" if number == signal.SIGINT else ""
            words = "nothing to save, stopping" if self.at_once else f"stopping after the step in progress{again}"
            _say(f"\n{self.signal.name}: {words}\n")
            if self.at_once:
                raise Stopped

    def _watch(self, pipe: int) -> None:
        """In a thread of its own: ends a process whose main thread can't.

        A compilation is one long call of C++, and Python runs no handler before it returns.
        The number of a signal arrives here at once.
        """
        interrupts = 0
        while number := os.read(pipe, 1)[0]:
            interrupts += number == signal.SIGINT
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            if self.at_once or interrupts > 1:
                threading.Thread(target=self._end, args=(number, interrupts > 1), daemon=True).start()

    def _end(self, number: int, anyway: bool) -> None:
        if not self._over.wait(GRACE) and (self.at_once or anyway):
            _say(f"{signal.Signals(number).name}: stopped at once\n")
            if sys.stdout.isatty():
                _say("\x1b[?25h")  # the live line hides the cursor
            os._exit(128 + number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Takes SIGINT and SIGTERM over, in the main thread; in another it does nothing.

        A second SIGINT raises KeyboardInterrupt. Where `at_once` is set the first signal
        raises `Stopped`, and the process ends after `GRACE` seconds if it is still here.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self._over = threading.Event()
        ours, its = os.pipe()
        os.set_blocking(its, False)
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        wakeup = signal.set_wakeup_fd(its, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(ours,), name="signals", daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            self._over.set()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.write(its, b"\0")
            watcher.join()
            os.close(ours)
            os.close(its)


def _say(text: str) -> None:
    """On standard error, past Python's buffers: a handler may have interrupted a print."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
