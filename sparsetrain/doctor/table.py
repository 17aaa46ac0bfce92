"""The findings of an examination as a page for people: what differs between hosts is marked."""

from __future__ import annotations

from typing import Any

from sparsetrain.doctor.examination import Findings
from sparsetrain.doctor.facts import VERSIONS

MARK = "*"  # beside a fact in which hosts differ
ROWS = ("python", *VERSIONS, "interface", "cores", "memory_gib", "gpus", "mpi", "token", "shared")
FREE = ("host", "address", "clock")  # differ by nature
MOST = 6  # ranks side by side; more go below each other


def page(found: Findings, lines: list[str]) -> str:
    """Return the page: all ranks side by side, the ways between them, and the problems."""
    ranks = sorted(found.facts)
    parts = [f"{len(ranks)} of {found.size} rank(s) by {found.who}"]
    differ = {row for row in ROWS if len({_cell(found.facts[rank], row) for rank in ranks}) > 1}
    for first in range(0, len(ranks), MOST):
        parts.append(_columns(found, ranks[first : first + MOST], differ))
    if differ:
        parts.append(f"{MARK} not the same everywhere")
    if found.ways:
        parts.append(_ways(found))
    count = f"{len(lines)} problem(s):" if lines else "no problem found"
    parts.append("\n".join([count, *(f"- {' '.join(line.split())}" for line in lines)]))
    return "\n\n".join(parts)


def _columns(found: Findings, ranks: list[int], differ: set[str]) -> str:
    rows = [["", *(f"{found.facts[rank]['node']}/{rank}" for rank in ranks)]]
    for row in (*FREE, *ROWS):
        mark = f"{row.replace('_gib', ' (GiB)')}{' ' + MARK if row in differ else ''}"
        rows.append([mark, *(_cell(found.facts[rank], row) for rank in ranks)])
    return _aligned(rows)


def _ways(found: Findings) -> str:
    rows = [["from", "to", "latency (ms)", "Mbit/s"]]
    for (start, end), way in sorted(found.ways.items()):
        names = [f"{found.facts[rank]['node']}/{rank}" for rank in (start, end)]
        said = [f"{way['latency_ms']:.3f}", f"{way['mbit_s']:.0f}"] if "error" not in way else [way["error"], "-"]
        rows.append([*names, *said])
    return _aligned(rows)


def _cell(each: dict[str, Any], row: str) -> str:
    if row == "clock":
        ahead = each.get("ahead_s")
        return "unknown" if ahead is None else f"{ahead:+.3f} s"
    if row == "shared":
        seen = each.get("shared")
        return "unknown" if seen is None else "seen" if seen else "not seen"
    return str(each[row])


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
