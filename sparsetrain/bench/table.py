"""Timing candidates in turns, and plain text tables of what came out.

On a shared machine the speed drifts within seconds. Candidates that take turns, A B A B, meet the same drift, so what
is compared is one round of A with the same round of B.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ABSENT = "-"


def interleave(candidates: Mapping[str, Callable[[], None]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return seconds per candidate and round; each round calls every candidate once, in order.

    The first `warmup` rounds are not kept. With ranks, all must call it with the same candidates in the same order.
    Raises ValueError unless there is at least one round.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds {rounds}, warmup {warmup}: want at least 1 round and no negative warm-up")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            spent = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(spent)
    return seconds


def median(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each candidate's seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, float]:
    """Return for each candidate the median over rounds of its seconds / the baseline's in the same round.

    Below 1 is faster than the baseline. Raises ValueError when the candidates have unequal numbers of rounds.
    """
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds[baseline], strict=True))
        for name, values in seconds.items()
    }


def render(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return a table with one heading line, numbers aligned to the right and words to the left, no final line break.

    Column names carry their units. Fractions are shown with four significant digits; a missing value or None as "-".
    """
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in [list(columns), *cells]) for index in range(len(columns))]
    numeric = [all(_is_number(row.get(column)) for row in rows) for column in columns]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [list(columns), *cells]
    ]
    return "\n".join(lines)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)
