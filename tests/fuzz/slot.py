"""A file in memory that holds the case at hand, so that it outlives the process that a case kills or hangs."""

from __future__ import annotations

import mmap
import pathlib
import struct

HEAD = struct.Struct("<QI")  # number of the case, its bytes
ROOM = 1 << 22  # bytes


class Slot:
    """Written by the process that reads cases, looked at by the one that watches it."""

    def __init__(self, path: pathlib.Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(HEAD.size + ROOM))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), HEAD.size + ROOM)

    def put(self, number: int, case: bytes) -> None:
        """Hold case number `number`; of one that is longer than the room its beginning."""
        part = case[:ROOM]
        self.memory[: HEAD.size + len(part)] = HEAD.pack(number, len(part)) + part

    def get(self) -> tuple[int, bytes]:
        """Return number and bytes of the case at hand."""
        number, length = HEAD.unpack(self.memory[: HEAD.size])
        return number, self.memory[HEAD.size : HEAD.size + length]
