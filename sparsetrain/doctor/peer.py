"""The plain way between two ranks: a listener at the address that gloo would use, and what calls to it measure."""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable

REACH = 3.0  # seconds in which a call has to be answered
TRIPS = 20  # round trips of one byte
BYTES = 4 << 20
SLOW_S = 5.0  # seconds after which sending is given up; the rate is that of what was sent
CHUNK = 1 << 16
ECHO, TAKE, CLOCK = b"e", b"t", b"c"


class Listener:
    """Answers the calls of those that know the 16 bytes of `secret`, until `close`."""

    def __init__(self, address: str, secret: bytes) -> None:
        self.socket = socket.create_server((address, 0), backlog=64)
        self.secret = secret
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        """Return the port at which it listens."""
        return int(self.socket.getsockname()[1])

    def close(self) -> None:
        """Answer no more calls."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _serve(self) -> None:
        while True:
            try:
                call, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(call,), daemon=True).start()

    def _answer(self, call: socket.socket) -> None:
        with call, contextlib.suppress(OSError):
            call.settimeout(SLOW_S * 2)
            call.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _exactly(call, 16) != self.secret:
                return
            while word := call.recv(1):
                if word == ECHO:
                    call.sendall(ECHO)
                elif word == CLOCK:
                    call.sendall(struct.pack("!d", time.time()))
                elif word == TAKE:
                    _exactly(call, CHUNK)
                    call.sendall(TAKE)


def call(address: str, port: int, secret: bytes) -> socket.socket:
    """Return a connection to a listener. Raises OSError."""
    made = socket.create_connection((address, port), timeout=REACH)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.sendall(secret)
    return made


def measure(address: str, port: int, secret: bytes) -> dict[str, float | str]:
    """Return `latency_ms` (half the median round trip) and `mbit_s` on the way to a listener, or `error`."""
    try:
        with call(address, port, secret) as made:
            trips = [_timed(lambda: _round_trip(made)) for _ in range(TRIPS)]
            began, sent = time.perf_counter(), 0
            made.settimeout(SLOW_S)
            data, waiting = TAKE + bytes(CHUNK), 0
            while sent < BYTES and time.perf_counter() - began < SLOW_S:
                made.sendall(data)
                sent, waiting = sent + CHUNK, waiting + 1
                if waiting > 8:  # so many chunks may be under way
                    waiting -= len(_exactly(made, 1))
            _exactly(made, waiting)
            seconds = time.perf_counter() - began
    except OSError as error:
        return {"error": str(error) or type(error).__name__}
    return {"latency_ms": statistics.median(trips) * 500, "mbit_s": sent * 8 / seconds / 1e6}


def clock_ahead(address: str, port: int, secret: bytes) -> float | None:
    """Return by how many seconds this host's clock is ahead of a listener's, None where it cannot be reached."""
    best: tuple[float, float] | None = None
    try:
        with call(address, port, secret) as made:
            for _ in range(TRIPS):
                before = time.time()
                made.sendall(CLOCK)
                (there,) = struct.unpack("!d", _exactly(made, 8))
                after = time.time()
                if best is None or after - before < best[0]:
                    best = (after - before, (before + after) / 2 - there)
    except OSError:
        return None
    return best[1] if best else None


def _round_trip(made: socket.socket) -> None:
    made.sendall(ECHO)
    _exactly(made, 1)


def _timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _exactly(made: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        more = made.recv(count - len(found))
        if not more:
            raise ConnectionError("the other end closed the connection")
        found += more
    return bytes(found)
