"""The threads through which buckets leave: one selects, the others communicate, all first in, first out.

Every collective of the exchange is issued by one of the latter, each of which has its own way to the other ranks, in
the order of submission, which is the same on all ranks; never from a callback. With two ways one bucket is on the wire
while another is encoded or merged.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Work = Callable[[], Any]


class Pipeline:
    """`submit(first, second, way)` runs first() on one thread and then second(its result) on thread number `way`."""

    def __init__(self, ways: int) -> None:
        self.selecting = _Stage("sparsetrain-select")
        self.ways = [_Stage(f"sparsetrain-wire-{way}") for way in range(ways)]

    def submit(self, first: Callable[[], Any], second: Callable[[Any], Any], way: int) -> Future[Any]:
        """Return the future of second(first()); an exception of either is raised by its `result`."""
        selected = self.selecting.submit(first)
        return self.ways[way].submit(lambda: second(selected.result()))

    def close(self) -> None:
        """End all threads after what has been submitted."""
        for stage in (self.selecting, *self.ways):
            stage.close()


class Inline:
    """The same without threads: everything has happened when `submit` returns."""

    def submit(self, first: Callable[[], Any], second: Callable[[Any], Any], way: int) -> Future[Any]:
        """Return the finished future of second(first())."""
        return _run(lambda: second(first()), Future())

    def close(self) -> None:
        """Nothing to end."""


class _Stage:
    """A thread with a queue. A daemon: a collective that hangs must not keep a process from ending."""

    def __init__(self, name: str) -> None:
        self.queue: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()

    def submit(self, work: Work) -> Future[Any]:
        future: Future[Any] = Future()
        self.queue.put((work, future))
        return future

    def close(self) -> None:
        self.queue.put(None)

    def _main(self) -> None:
        while (item := self.queue.get()) is not None:
            _run(*item)


def _run(work: Work, future: Future[Any]) -> Future[Any]:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
    return future
