"""metrics.jsonl: one object per row, the one source that console, report and comparison read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from sparsetrain.track.sink import Delayed

Row = dict[str, float]
BLOCK = 2**18  # bytes that are read at once of the end of a file


class JsonlSink:
    """Appends rows to metrics.jsonl; rows after the step that a run resumes from are cut off first."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    def __init__(self, config: Config, path: pathlib.Path, step: int) -> None:
        self.path = path
        if path.exists():
            kept = [row for row in read(path) if row["train/step"] <= step] if step else []
            unfinished = path.with_name(path.name + ".part")
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            os.replace(unfinished, path)
        self.stream = path.open("ab", buffering=0)
        self.written = path.stat().st_size
        self.waiting: list[bytes] = []

    def log(self, row: Row) -> None:
        """Hand one row to the operating system. Raises Delayed on a full disk: the rows then come with the next one."""
        self.waiting.append(json.dumps(row).encode() + b"\n")
        self._write()

    def close(self, status: str) -> None:
        """Write what waits and close the file."""
        with self.stream:
            self._write()

    def _write(self) -> None:
        data = b"".join(self.waiting)
        try:
            while data:
                data = data[self.stream.write(data) :]
        except OSError as error:
            self.stream.truncate(self.written)  # half a row would spoil the next one
            raise Delayed(str(error)) from error
        self.written += sum(map(len, self.waiting))
        self.waiting.clear()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; what is no row of numbers, like a line that a crash cut off, is left out."""
    if not path.is_file():  # a pipe would keep us waiting
        return []
    with path.open("rb") as file:
        return [row for line in file if (row := parsed(line)) is not None]


def tail(path: pathlib.Path, most: int = 64) -> list[dict[str, Any]]:
    """Return the last rows of a metrics file, at most `most`, without reading what lies far before them."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        taken = min(end, BLOCK)
        while True:
            file.seek(end - taken)
            lines = file.read(taken).split(b"\n")
            if taken < end:
                lines = lines[1:]  # the first one may have lost its beginning
            rows = [row for line in lines[-most - 1 :] if (row := parsed(line)) is not None]
            if len(rows) >= min(most, 1) or taken == end:
                return rows[-most:]
            taken = min(end, 8 * taken)


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line, None where it is no object of finite numbers with a step."""
    try:
        row = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(_is_number(value) for value in row.values()):
        return None
    return row if row.get("train/step", -1) >= 0 else None


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def series(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return (steps, values) of the rows that have `key`."""
    found = [row for row in rows if key in row]
    return [row["train/step"] for row in found], [row[key] for row in found]
