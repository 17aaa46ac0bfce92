"""The TCP connections over which a group of ranks talks, so that they can be cut.

Gloo knows no way to give up: neither abort nor destroy frees a rank that waits for one which is gone, and that one's
neighbours alone notice. Shutting this process's own ends down makes every wait, in every thread, end with an error
within milliseconds, whatever the other side does, and the group can then be destroyed as usual.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

DESCRIPTORS = pathlib.Path("/proc/self/fd")  # Linux; elsewhere there is nothing to cut, and time limits hold


class Connections:
    """Collects what is opened while a group is made. `cut` may come from another thread, at any time."""

    def __init__(self) -> None:
        self.cut_off = False
        self.late = ""  # why somebody cut them, where it was a time limit
        self._since: dict[int, float] = {}  # by thread, on the clock
        self._found: dict[int, str] = {}
        self._before: dict[int, str] | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take what is opened inside for the group's; one thread at a time."""
        with self._lock:
            self._before = _sockets()
        try:
            yield
        finally:
            with self._lock:
                self._take()
                self._before = None
                if self.cut_off:
                    self._shut()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Note that this thread is in a collective, inside."""
        own = threading.get_ident()
        self._since[own] = time.monotonic()
        try:
            yield
        finally:
            self._since.pop(own, None)

    def waiting(self) -> float:
        """Return for how many seconds the collective that has been under way for longest has been so; 0: none is."""
        since = list(self._since.values())
        return time.monotonic() - min(since) if since else 0.0

    def cut(self) -> int:
        """Shut down all connections, those included that are being made, and return how many there were."""
        with self._lock:
            self.cut_off = True
            self._take()
            return self._shut()

    def _take(self) -> None:
        if self._before is not None:
            before = self._before
            self._found |= {fd: name for fd, name in _sockets().items() if before.get(fd) != name}

    def _shut(self) -> int:
        now = _sockets()
        return sum(_shut(fd) for fd, name in self._found.items() if now.get(fd) == name)


def _sockets() -> dict[int, str]:
    """Return this process's sockets: descriptor -> the kernel's name, which tells a reused descriptor from the old."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir(DESCRIPTORS):
            with contextlib.suppress(OSError):
                name = os.readlink(DESCRIPTORS / entry)
                if name.startswith("socket:"):
                    found[int(entry)] = name
    return found


def _shut(descriptor: int) -> bool:
    """Shut one connection down; a listener stays, since gloo ends the process when its own fails."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as own:
            listens = own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if own.family not in (socket.AF_INET, socket.AF_INET6) or own.type != socket.SOCK_STREAM or listens:
                return False
            own.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:  # closed meanwhile, or not connected
        return False
