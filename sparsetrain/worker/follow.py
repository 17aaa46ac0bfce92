"""Reads metrics.jsonl while the loop writes it."""

from __future__ import annotations

import json
import pathlib
from typing import Any


class Follower:
    """Yields the rows of this attempt only.

    A run that resumes first rewrites the file to the rows up to its checkpoint; those are known and not shown again.
    Make the follower before the loop starts.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.offset = 0
        self.old = self._identity()
        self.known = set(path.read_bytes().split(b"\n")) if self.old else set()

    def rows(self) -> list[dict[str, Any]]:
        """Return the complete rows that are new since the last call."""
        identity = self._identity()
        if identity is None or identity == self.old:
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            # A row that is still being written has no newline yet; it comes with the next call.
            complete, newline, _ = file.read().rpartition(b"\n")
        self.offset += len(complete) + len(newline)
        return [json.loads(line) for line in complete.split(b"\n") if line and line not in self.known]

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino
