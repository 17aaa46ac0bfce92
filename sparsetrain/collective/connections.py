"""The TCP connections over which a group of ranks talks, so that they can be cut.

Gloo knows no way to give up: neither abort nor destroy frees a rank that waits for one which is gone, and that one's
neighbours alone notice. Shutting this process's own ends down makes every wait, in every thread, end with an error
within milliseconds, whatever the other side does, and the group can then be destroyed as usual.

The group's connections are told from others, Ray's for instance, by the ports on which its ranks listen.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable

DESCRIPTORS = pathlib.Path("/proc/self/fd")  # Linux; elsewhere there is nothing to cut, and time limits hold


class Connections:
    """Knows the ports of a group, and who waits in it. `cut` may come from another thread, at any time.

    `late`: why somebody cut them, where it was a time limit. `mark` hears of each collective: name, began, ended.
    """

    def __init__(self) -> None:
        self.cut_off = False
        self.late = ""
        self.owners: dict[str, int] = {}  # which rank has a connection's end, by "address:port"
        self.mark: Callable[[str, float, float], None] | None = None
        self._ports: set[int] = set()
        self._before: frozenset[str] | None = None  # while a group is being made
        self._since: dict[int, float] = {}  # by thread, on the clock
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        """Make a group inside, one thread at a time, and `know` its ports; until then a cut takes all that is new."""
        with self._lock:
            self._before = frozenset(_sockets().values())
        try:
            yield
        finally:
            with self._lock:
                if self.cut_off:
                    self._shut()
                self._before = None

    def listening(self) -> list[int]:
        """Return the ports on which this process listens since the group is being made."""
        before = self._before or frozenset()
        return [port for fd, name in _sockets().items() if name not in before and (port := _listens(fd))]

    def ends(self) -> list[str]:
        """Return this process's ends of the connections made since the group is being made, as "address:port"."""
        before = self._before or frozenset()
        found = [_name(fd) for fd, name in _sockets().items() if name not in before]
        return [end for end in found if end]

    def know(self, ports: Iterable[int]) -> None:
        """Take connections from and to these ports for the group's."""
        with self._lock:
            self._ports |= set(ports)

    def named(self, message: str) -> str:
        """Return what a library says of a broken connection with the rank at its other end before it."""
        for address, text in re.findall(r"\[([0-9a-fA-F.:]+)\]:(\d+)", message):
            port = int(text)
            # Gloo prints a port as it lies in memory, which swaps its bytes on most machines.
            for number in ((port & 0xFF) << 8 | port >> 8, port):
                if (rank := self.owners.get(_end(address, number))) is not None:
                    return f"rank {rank} is gone: {message}"
        return message

    @contextlib.contextmanager
    def used(self) -> Generator[None]:
        """Note that this thread is in a collective, inside."""
        own = threading.get_ident()
        began = self._since[own] = time.perf_counter()
        try:
            yield
        finally:
            self._since.pop(own, None)
            if self.mark is not None:
                self.mark("collective", began, time.perf_counter())

    def waiting(self) -> float:
        """Return for how many seconds the collective that has been under way for longest has been so; 0: none is."""
        since = list(self._since.values())
        return time.perf_counter() - min(since) if since else 0.0

    def cut(self) -> int:
        """Shut down all connections, those included that are being made, and return how many there were."""
        with self._lock:
            self.cut_off = True
            return self._shut()

    def _shut(self) -> int:
        before = self._before
        return sum(
            _shut(fd, self._ports, every=before is not None and name not in before) for fd, name in _sockets().items()
        )


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


def _end(address: str, port: int) -> str:
    return f"{address.removeprefix('::ffff:')}:{port}"


def _name(descriptor: int) -> str:
    """Return this end of a TCP connection, nothing for other sockets."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as own:
            if own.family not in (socket.AF_INET, socket.AF_INET6) or own.type != socket.SOCK_STREAM:
                return ""
            return _end(*own.getsockname()[:2])
    except OSError:  # closed meanwhile
        return ""


def _listens(descriptor: int) -> int:
    """Return the TCP port on which a socket listens, 0 where it does not."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as own:
            if own.family not in (socket.AF_INET, socket.AF_INET6) or own.type != socket.SOCK_STREAM:
                return 0
            listens = own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return int(own.getsockname()[1]) if listens else 0
    except OSError:  # closed meanwhile
        return 0


def _shut(descriptor: int, ports: set[int], every: bool) -> bool:
    """Shut one connection down, if it is from or to one of `ports`, or in any case; a listener stays, since gloo ends
    the process when its own fails."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as own:
            if own.family not in (socket.AF_INET, socket.AF_INET6) or own.type != socket.SOCK_STREAM:
                return False
            if own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            if not every and own.getsockname()[1] not in ports and own.getpeername()[1] not in ports:
                return False
            own.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:  # closed meanwhile, or not connected
        return False
