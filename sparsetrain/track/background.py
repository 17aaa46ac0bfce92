"""A sink whose work is done on a thread of its own, so that the training never waits for it.

What is given to it waits in a queue with limited room. Where there is none left, because a server is slow or a disk is
full, rows are dropped here; metrics.jsonl has them all.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sparsetrain.track.notes import Note
from sparsetrain.track.sink import Row

ROOM = 4096  # rows and notes that may wait
CLOSE_S = 30.0  # seconds that the end of a run waits for what is left


class Writer(Protocol):
    """Does the work; made, used and closed on the thread. Whatever it raises ends it, and nothing else."""

    def log(self, row: Row) -> None: ...

    def tell(self, step: int, notes: Sequence[Note]) -> None: ...

    def close(self, status: str) -> None: ...


class Background:
    """Gives rows and notes to a writer in their order; `say` hears of the first trouble, and of no other.

    `opens` makes the writer. `seconds` counts what the callers of `log` and `tell` have waited here.
    """

    def __init__(
        self,
        name: str,
        opens: Callable[[], Writer],
        say: Callable[[str], None],
        room: int = ROOM,
        patience: float = CLOSE_S,
    ) -> None:
        self.name = name
        self.say = say
        self.room = room
        self.patience = patience
        self.seconds = 0.0
        self.dropped = 0
        self._opens = opens
        self._warned = False
        self._queue: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=f"sparsetrain-{name}", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Take one row."""
        self._put("log", row)

    def tell(self, step: int, notes: Sequence[Note]) -> None:
        """Take what belongs to a step beside its row."""
        self._put("tell", step, notes)

    def close(self, status: str) -> None:
        """Let the thread finish what waits, and wait for that as long as `patience` says."""
        self._queue.put(("close", (status,)))
        self._thread.join(self.patience)
        if self._thread.is_alive():
            self.warn(f"has not taken everything {self.patience:g} s after the end; metrics.jsonl has all rows")

    def warn(self, text: str) -> None:
        """Say what is wrong, unless something has been said already."""
        if not self._warned:
            self._warned = True
            self.say(f"{self.name} {text}")

    def _put(self, call: str, *arguments: Any) -> None:
        began = time.perf_counter()
        if self._queue.qsize() < self.room:
            self._queue.put((call, arguments))
        else:
            self.dropped += 1
            self.warn("is too slow: rows are dropped there; metrics.jsonl has them all")
        self.seconds += time.perf_counter() - began

    def _main(self) -> None:
        writer: Writer | None = None
        try:
            writer = self._opens()
        except Exception as error:
            self._off(error)
        while True:
            call, arguments = self._queue.get()
            try:
                if writer is not None:
                    getattr(writer, call)(*arguments)
            except Exception as error:
                writer = None
                self._off(error)
            if call == "close":
                return

    def _off(self, error: Exception) -> None:
        said = str(error).strip().split("\n")[0]
        self.warn(f"is switched off for this run: {type(error).__name__}: {said}")
