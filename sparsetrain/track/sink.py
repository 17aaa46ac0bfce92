"""Where rows of metrics go. A sink that fails is switched off with one warning; it never fails the training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from sparsetrain.track.notes import Note

Row = dict[str, float]
log = logging.getLogger("sparsetrain.track")


class Delayed(Exception):
    """A row could not be written now; the sink keeps it and tries again with the next one."""


class Sink(Protocol):
    """Takes rows (each has "train/step") and is closed once, with the status of the run. One that can show tables and
    their like has `tell(step, notes)` too."""

    def log(self, row: Row) -> None: ...

    def close(self, status: str) -> None: ...


class Tracker:
    """Gives each row to every sink that still works; used on rank 0 only."""

    def __init__(self, sinks: dict[str, Callable[[], Sink]], say: Callable[[str], None] = log.warning) -> None:
        self.sinks: dict[str, Sink] = {}
        self.say = say
        self.late: set[str] = set()
        self.last = -1.0
        for name, make in sinks.items():
            self._guard(name, lambda name=name, make=make: self.sinks.__setitem__(name, make()))

    def log(self, row: Row) -> None:
        """Record one row, once: a step that is done again after a loss brings none that is there already."""
        if row["train/step"] <= self.last:
            return
        self.last = row["train/step"]
        for name, sink in list(self.sinks.items()):
            self._guard(name, lambda sink=sink: sink.log(row))

    def tell(self, step: int, notes: Sequence[Note]) -> None:
        """Give what belongs to a step beside its row to the sinks that can show it."""
        for name, sink in list(self.sinks.items()):
            shows = getattr(sink, "tell", None)
            if shows is not None and notes:
                self._guard(name, lambda shows=shows: shows(step, notes))

    def close(self, status: str) -> None:
        """Close all sinks; `status` is "finished" or "failed"."""
        for name, sink in list(self.sinks.items()):
            self._guard(name, lambda sink=sink: sink.close(status))
        self.sinks.clear()

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
            self.late.discard(name)
        except Delayed as error:
            if name not in self.late:
                self.say(f"{name} cannot be written now and is tried again: {error}")
            self.late.add(name)
        except Exception as error:
            self.sinks.pop(name, None)
            self.say(f"{name} is switched off for this run: {type(error).__name__}: {error}")
