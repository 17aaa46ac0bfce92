"""The notice that a run's time is nearly over: it may come before there is anything that could be told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

AGAIN = 75  # EX_TEMPFAIL of sysexits.h
FAILED = 1
SIGNAL = signal.SIGUSR1.name
LIMIT = "cluster.time_limit"


class Notice:
    """Remembers why the run shall save and end, and tells whoever asks to be told, at once or later. `cause`: what came
    first, empty as long as nothing has."""

    def __init__(self) -> None:
        self.cause = ""
        self._tell: Callable[[], None] | None = None

    def receive(self, number: int, frame: object) -> None:
        """Take the signal, as its handler."""
        self._give(signal.Signals(number).name)

    def after(self, seconds: float) -> None:
        """Give notice after so many seconds from now, the job's cluster.time_limit."""
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._give, [limit_words(seconds)])
        timer.daemon = True
        timer.start()

    def to(self, tell: Callable[[], None]) -> None:
        """Call `tell` when notice comes, now if it has come."""
        self._tell = tell
        if self.cause:
            tell()

    def _give(self, cause: str) -> None:
        self.cause = self.cause or cause
        if self._tell is not None:
            self._tell()


def limit_words(seconds: float) -> str:
    """Return what is said of a run whose time limit is over."""
    return f"{LIMIT} ({seconds:g} s)"


def last_words(name: str, result: Mapping[str, Any], cause: str) -> tuple[str, int, str]:
    """Return the status, the exit code and the line of a run that has paused with this result and ends, since `cause`
    came: one that could not be saved has failed, so that nothing starts it again and again."""
    step = result["steps"]
    if result["saved"]:
        return "interrupted", AGAIN, f"{name}: saved at step {step}, since {cause} came; the same command goes on there"
    lost = "what follows the newest checkpoint, if there is one, is lost"
    return "failed", FAILED, f"{name}: ended at step {step}, since {cause} came, and could not be saved; {lost}"
