"""Two threads through which buckets leave: one selects, one communicates, both first in, first out.

Every collective of the exchange is issued by the second thread, in the order of submission, which is the same on all
ranks; never from a callback.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Work = Callable[[], Any]


class Pipeline:
    """`submit(first, second)` runs first() on one thread and then second(its result) on the other."""

    def __init__(self) -> None:
        self.stages = [_Stage("sparsetrain-select"), _Stage("sparsetrain-wire")]

    def submit(self, first: Callable[[], Any], second: Callable[[Any], Any]) -> Future[Any]:
        """Return the future of second(first()); an exception of either is raised by its `result`."""
        selected = self.stages[0].submit(first)
        return self.stages[1].submit(lambda: second(selected.result()))

    def close(self) -> None:
        """End both threads after what has been submitted."""
        for stage in self.stages:
            stage.close()


class Inline:
    """The same without threads: everything has happened when `submit` returns."""

    def submit(self, first: Callable[[], Any], second: Callable[[Any], Any]) -> Future[Any]:
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
