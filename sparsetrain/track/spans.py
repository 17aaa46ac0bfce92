"""What a rank did from when to when, kept in memory and written at each row of metrics: trace/rankNNNNN.jsonl.

A file begins anew with a head line for each attempt: this clock's and the world's time at one moment, and the machine
on whose clock they are. Lines of spans follow, in microseconds since the head, and of meetings: when this rank came out
of the collective of a row, which all ranks leave at about the same time. `sparsetrain trace` puts them on one axis.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

FOLDER = "trace"
LIMIT = 64 << 20  # bytes of a rank's file
WAITING = 200_000  # spans in memory
Mark = Callable[[str, float, float], None]  # name, began, ended: on time.perf_counter


class Spans:
    """Takes spans from any thread; one thread calls `flush` and `close`. A full disk or file ends the trace alone."""

    def __init__(self, folder: pathlib.Path, rank: int, node: str = "", limit: int = LIMIT) -> None:
        self.path = folder / FOLDER / f"rank{rank:05d}.jsonl"
        self.limit = limit
        self.on = folder.is_dir() or rank == 0  # a folder that is not shared is rank 0's alone
        self.clock = time.perf_counter()
        self.threads: dict[int, str] = {}
        self._spans: list[tuple[str, int, float, float]] = []
        self._met: list[tuple[int, float]] = []
        self._lines: list[dict[str, Any]] = [
            {
                "trace": 1,
                "rank": rank,
                "node": node or socket.gethostname(),
                "machine": machine(),
                "pid": os.getpid(),
                "wall": time.time(),
                "clock": self.clock,
            }
        ]
        self._size: int | None = None

    def mark(self, name: str, began: float, ended: float) -> None:
        """Note that this thread did something."""
        if self.on and len(self._spans) < WAITING:
            self._spans.append((name, threading.get_ident(), began, ended))

    @contextlib.contextmanager
    def span(self, name: str) -> Generator[None]:
        """Note the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.mark(name, began, time.perf_counter())

    def met(self, step: int) -> None:
        """Note that the collective of a row has just ended."""
        if self.on:
            self._met.append((step, time.perf_counter()))

    def flush(self) -> None:
        """Write what waits."""
        if not self.on:
            return
        spans, self._spans = self._spans, []
        met, self._met = self._met, []
        for thread in threading.enumerate():
            if thread.ident is not None and self.threads.get(thread.ident) != thread.name:
                self.threads[thread.ident] = thread.name
                self._lines.append({"thread": thread.ident, "name": thread.name})
        if spans:
            micro = [
                [name, thread, self._micro(began), round((ended - began) * 1e6)] for name, thread, began, ended in spans
            ]
            self._lines.append({"spans": micro})
        self._lines += [{"met": step, "at": self._micro(at)} for step, at in met]
        self._write()

    def close(self) -> None:
        """Write what waits."""
        self.flush()

    def _micro(self, at: float) -> int:
        return round((at - self.clock) * 1e6)

    def _write(self) -> None:
        data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self._lines).encode()
        self._lines = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._size is None:
                self._size = self.path.stat().st_size if self.path.exists() else 0
                data = (b"\n" if self._size else b"") + data  # what a crash cut off shall not spoil the head
            self._size += len(data)
            if self._size > self.limit:
                data, self.on = b'{"full":true}\n', False
            with self.path.open("ab") as file:
                file.write(data)
        except OSError:
            self.on = False


class NoSpans:
    """Takes everything and keeps nothing."""

    on = False

    def mark(self, name: str, began: float, ended: float) -> None:
        """Do nothing."""

    def span(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Do nothing around the block."""
        return contextlib.nullcontext()

    def met(self, step: int) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def machine() -> str:
    """Return what names this machine since its start: processes with the same word share one clock."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return socket.gethostname()
