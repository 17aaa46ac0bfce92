"""What belongs to a step beside its row of numbers: tables, histograms, alerts. Sinks that can show them do."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Level = Literal["INFO", "WARN", "ERROR"]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells (numbers, words, None), each as long as `columns`."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How many values lie between each two neighbours of `edges`, which are one more than `counts`."""

    name: str
    counts: tuple[int, ...]
    edges: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Alert:
    """A kind, by which alerts are rationed, and a line."""

    kind: str
    text: str
    level: Level = "WARN"


Note = Table | Histogram | Alert
