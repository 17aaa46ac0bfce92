"""Which lines of the package a call reaches: the feedback that tells an interesting case from the rest."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Hashable
from types import CodeType, FrameType, TracebackType
from typing import Any

import sparsetrain

PACKAGE = str(pathlib.Path(sparsetrain.__file__).parent)


class Lines:
    """Every (code, line) that has been reached under `trace` so far."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()
        self.own: dict[CodeType, bool] = {}

    def trace(self, call: Callable[[], Any]) -> bool:
        """Call, and return whether a line was reached for the first time; what the call raises is the caller's."""
        before = len(self.seen)
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(None)
        return len(self.seen) > before

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        own = self.own.get(code)
        if own is None:
            own = self.own[code] = code.co_filename.startswith(PACKAGE)
        return self._line if own else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        self.seen.add((frame.f_code, frame.f_lineno))
        return self._line


def path_of(error: BaseException) -> Hashable:
    """Return the type of an error and the lines of the package that it came through: its kind, without tracing."""
    found: list[object] = [type(error)]
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(PACKAGE):
            found += (code, trace.tb_lineno)
        trace = trace.tb_next
    return tuple(found)


def place_of(error: BaseException) -> str:
    """Return where in the package an error was raised, as a line that stays the same from run to run."""
    place = "outside the package"
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(PACKAGE):
            place = f"{pathlib.Path(file).relative_to(PACKAGE)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"
