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
    rows = []
    if not path.is_file():  # a pipe would keep us waiting
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(row, dict)
            and all(_is_number(value) for value in row.values())
            and row.get("train/step", -1) >= 0
        ):
            rows.append(row)
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def series(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return (steps, values) of the rows that have `key`."""
    found = [row for row in rows if key in row]
    return [row["train/step"] for row in found], [row[key] for row in found]
