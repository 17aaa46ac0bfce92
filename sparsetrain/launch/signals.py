"""Ctrl-C and SIGTERM as a question that is asked between calls, and quiet while a run is being taken down.

An exception out of the middle of a call into Ray's C++ code left the interpreter in a state that crashed at exit; so
the first signal only raises a flag that the driver looks at twice a second. The second one does not wait.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from typing import Any

from sparsetrain.worker.notice import Notice

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The user or the system asked this process to end."""


class Stop:
    """Remembers the first signal."""

    def __init__(self) -> None:
        self.name: str | None = None

    def check(self) -> None:
        """Raise Stopped when a signal has come."""
        if self.name:
            raise Stopped(self.name)

    def receive(self, number: int, frame: Any) -> None:
        """Remember a signal, as its handler."""
        self.check()
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def kept() -> Generator[None]:
    """Put the handlers of SIGINT and SIGTERM back afterwards; only the main thread may change any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def listening() -> Generator[Stop]:
    """Collect SIGINT and SIGTERM in what is yielded; `check` raises."""
    stop = Stop()
    with kept():
        _handle(stop.receive)
        yield stop


@contextlib.contextmanager
def undisturbed() -> Generator[None]:
    """Ignore SIGINT and SIGTERM inside: a second Ctrl-C must not leave processes behind."""
    with kept():
        _handle(signal.SIG_IGN)
        yield


@contextlib.contextmanager
def noticing() -> Generator[Notice]:
    """Collect SIGUSR1, the notice that the time is nearly over, where nobody does yet."""
    notice = Notice()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL:
        yield notice
        return
    signal.signal(signal.SIGUSR1, notice.receive)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def _handle(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                signal.signal(number, handler)
