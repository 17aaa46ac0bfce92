"""The notice that this process's time is nearly over: it may come before there is anything that could be told."""

from __future__ import annotations

from collections.abc import Callable


class Notice:
    """Remembers that a signal has come, and tells whoever asks to be told, at once or later."""

    def __init__(self) -> None:
        self.came = False
        self._tell: Callable[[], None] | None = None

    def receive(self, number: int, frame: object) -> None:
        """Take the signal, as its handler."""
        self.came = True
        if self._tell is not None:
            self._tell()

    def to(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the signal comes, now if it has come."""
        self._tell = tell
        if self.came:
            tell()
