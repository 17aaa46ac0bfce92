"""metrics.jsonl: one object per row, the one source that console, report and comparison read."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

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
        self.stream = path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        """Write one row and hand it to the operating system."""
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()

    def close(self, status: str) -> None:
        """Close the file."""
        self.stream.close()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; a last line that was cut off by a crash is left out."""
    rows = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "train/step" in row:
            rows.append(row)
    return rows


def series(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return (steps, values) of the rows that have `key`."""
    found = [row for row in rows if key in row]
    return [row["train/step"] for row in found], [row[key] for row in found]
