"""The threads through which gradients leave: one selects, the others communicate, all first in, first out.

Every collective of the exchange is issued by one of the latter, each of which has its own way to the other ranks, in
the order of submission, which is the same on all ranks; never from a callback. With several ways some buckets are on
the wire while another is encoded or merged. Selection stays only a little ahead of the wire: it shares processors with
it, and with the backward pass.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Work = Callable[[], Any]
PATIENCE_S = 1.0  # for a thread's end
AHEAD = 1  # buckets that are selected before a way is free for them


class Pipeline:
    """`submit(first, second, way)` runs first() on one thread and then second(its result) on thread number `way`;
    `send(work, way)` runs work() there, with nothing before it."""

    def __init__(self, ways: int) -> None:
        self.selecting = _Stage("sparsetrain-select")
        self.ways = [_Stage(f"sparsetrain-wire-{way}") for way in range(ways)]
        self.room = threading.Semaphore(ways + AHEAD)

    def submit(self, first: Callable[[], Any], second: Callable[[Any], Any], way: int) -> Future[Any]:
        """Return the future of second(first()); an exception of either is raised by its `result`."""

        def select() -> Any:
            self.room.acquire()
            return first()

        def communicate() -> Any:
            try:
                return second(selected.result())
            finally:
                self.room.release()

        selected = self.selecting.submit(select)
        return self.ways[way].submit(communicate)

    def send(self, work: Work, way: int) -> Future[Any]:
        """Return the future of work(); an exception of it is raised by its `result`."""
        return self.ways[way].submit(work)

    def close(self) -> None:
        """End all threads after what has been submitted."""
        for stage in (self.selecting, *self.ways):
            stage.close()


class Inline:
    """The same without threads: everything has happened when `submit` returns."""

    def submit(self, first: Callable[[], Any], second: Callable[[Any], Any], way: int) -> Future[Any]:
        """Return the finished future of second(first())."""
        return _run(lambda: second(first()), Future())

    def send(self, work: Work, way: int) -> Future[Any]:
        """Return the finished future of work()."""
        return _run(work, Future())

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
        """End the thread after what has been submitted; wait for that, but not for a collective that hangs."""
        self.queue.put(None)
        self.thread.join(PATIENCE_S)

    def _main(self) -> None:
        while (item := self.queue.get()) is not None:
            _run(*item)
            del item  # or its tensors would live until the next one, perhaps past the interpreter


def _run(work: Work, future: Future[Any]) -> Future[Any]:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
    return future
