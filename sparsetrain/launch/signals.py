"""Ctrl-C and SIGTERM as one exception, and quiet while a run is being taken down."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Stopped(KeyboardInterrupt):
    """The user or the system asked this process to end."""


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def kept() -> Iterator[None]:
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
def listening() -> Iterator[None]:
    """Raise Stopped on SIGINT and SIGTERM inside."""
    with kept():
        _handle(_stop)
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM inside: a second Ctrl-C must not leave processes behind."""
    with kept():
        _handle(signal.SIG_IGN)
        yield


def _handle(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handler)


def _stop(number: int, frame: Any) -> None:
    raise Stopped(signal.Signals(number).name)
