"""What came of each format as one table: bytes, time to load, latency, and how far the outputs are from the run's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

DENSE = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One format: its file inside the export, bytes of that, seconds to load it, largest relative difference of the
    outputs, what it does where there is no sparsetrain (see check.alone), and median seconds of a forward pass by the
    number of samples. The model as it was trained is a row without file."""

    format: str
    file: str = ""
    bytes: int
    load_s: float = 0.0
    difference: float = 0.0
    alone: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    latency_s: Mapping[int, float] = dataclasses.field(default_factory=dict)


def cells(rows: Sequence[Row], bound: float) -> list[list[str]]:
    """Return titles and lines of the table; the first row is the dense model that ratios are of, `bound` the bytes of
    active values and the masks' entropy."""
    batches = sorted({batch for row in rows for batch in row.latency_s})
    latency = [f"{batch} sample{'s' if batch > 1 else ''} (ms)" for batch in batches]
    lines = [["format", "bytes", "of dense", "of bound", "load (ms)", *latency, "difference", "without sparsetrain"]]
    for row in rows:
        times = [_ms(row.latency_s.get(batch)) for batch in batches]
        own = [f"{row.bytes / rows[0].bytes:.3f}", f"{row.bytes / bound:.3f}", _ms(row.load_s) if row.file else "-"]
        apart = [f"{row.difference:.1e}", _alone(row.alone)] if row.file else ["-", "-"]
        lines.append([row.format, str(row.bytes), *own, *times, *apart])
    return lines


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Return the table in columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return the table in Markdown."""
    head, *rest = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rest))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3g}"


def _alone(found: Mapping[str, Any]) -> str:
    """Return how an export was loaded there, and what of it is the run's."""
    if not found:
        return "-"
    if found["difference"] is None:
        return f"{found['how']}: equal tensors"
    bits = ", equal tensors" if found["same"] else ""
    return f"{found['how']}: outputs to {found['difference']:.0e}{bits}"
