"""One trace of all ranks, for chrome://tracing and ui.perfetto.dev, from the spans that each rank has written.

Clocks: processes of one machine share its monotonic clock, so their spans need no more than one pair of monotonic and
wall time, the first that the machine's lowest rank wrote; a wall clock that is set during a run moves nothing. Another
machine is then shifted by the median, over all rows of metrics, of how much later than rank 0 its ranks left the
collective of that row, which all leave together. Where there is no such meeting, its wall clock counts.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import statistics
from collections.abc import Iterator
from typing import Any, TypeGuard

from sparsetrain.track.spans import FOLDER

MOST = 2_000_000  # spans of all ranks
LINE = 32 << 20  # characters that are read as one line
FARTHEST = 1e17  # microseconds: three thousand years
NAME = 100  # characters


@dataclasses.dataclass
class Part:
    """What one attempt of one rank wrote: its head, spans (name, thread, begin, duration in microseconds), meetings by
    step, names of threads."""

    rank: int
    node: str
    machine: str
    wall: float
    clock: float
    spans: list[tuple[str, int, float, float]] = dataclasses.field(default_factory=list)
    met: dict[int, float] = dataclasses.field(default_factory=dict)
    threads: dict[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Merged:
    """The trace as a tree for JSON, and what is to be said of it."""

    tree: dict[str, Any]
    spans: int
    ranks: int
    shifts: dict[str, float]  # seconds that were taken off the clock of a node
    left_out: int


def merge(folder: pathlib.Path) -> Merged:
    """Return the trace of a run folder; what is no span, in files of any content, is left out."""
    parts: list[Part] = []
    room, left_out = MOST, 0
    for path in sorted((folder / FOLDER).glob("rank*.jsonl")):
        for part in _parts(path):
            over = max(0, len(part.spans) - room)
            del part.spans[len(part.spans) - over :]
            room, left_out = room - len(part.spans), left_out + over
            parts.append(part)
    origins, shifts = _origins(parts)
    events = [*_events(parts, origins), *_incidents(folder)]
    first = min((event["ts"] for event in events if event["ph"] != "M"), default=0.0)
    for event in events:
        if event["ph"] != "M":
            event["ts"] = round(event["ts"] - first, 1)
    tree = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"began": first / 1e6, "run": folder.name}}
    return Merged(tree, MOST - room, len({part.rank for part in parts}), shifts, left_out)


def _parts(path: pathlib.Path) -> list[Part]:
    """Return the attempts in a file; ones whose head is missing or wrong are left out."""
    named = re.fullmatch(r"rank(\d{1,7})", path.stem)
    found: list[Part] = []
    if named is None or not path.is_file():  # a pipe would keep us waiting
        return found
    for line in _lines(path):
        if "trace" in line:
            wall, clock = line.get("wall"), line.get("clock")
            if _number(wall, FARTHEST / 1e6) and _number(clock, FARTHEST / 1e6):
                node, machine = (str(line.get(key, ""))[:NAME] for key in ("node", "machine"))
                found.append(Part(int(named[1]), node, machine, float(wall), float(clock)))
        elif found:
            _add(found[-1], line)
    return found


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            while text := file.readline(LINE):
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict):
                    yield line
    except OSError:
        return


def _add(part: Part, line: dict[str, Any]) -> None:
    """Add what a line says."""
    spans, met, at, thread = (line.get(key) for key in ("spans", "met", "at", "thread"))
    if isinstance(spans, list):
        for span in spans:
            if not (isinstance(span, list) and len(span) == 4 and isinstance(span[0], str)):
                continue
            name, ident, began, lasted = span
            if _number(ident) and _number(began) and _number(lasted) and lasted >= 0 and abs(began) + lasted < FARTHEST:
                part.spans.append((name[:NAME], int(ident), float(began), float(lasted)))
    elif _number(met) and _number(at):
        part.met[int(met)] = float(at)
    elif _number(thread, 1e20) and isinstance(line.get("name"), str):
        part.threads[int(thread)] = line["name"][:NAME]


def _origins(parts: list[Part]) -> tuple[dict[int, float], dict[str, float]]:
    """Return the time of each part's head on the common axis, in microseconds since 1970, and the shifts by node."""
    pairs: dict[str, tuple[float, float]] = {}
    for part in sorted(parts, key=lambda each: each.rank):
        pairs.setdefault(part.machine, (part.wall, part.clock))
    origins = {}
    for part in parts:
        wall, clock = pairs[part.machine]
        origins[id(part)] = (wall + part.clock - clock) * 1e6
    if not parts:
        return origins, {}
    zero = min(parts, key=lambda each: each.rank)
    # A step may have been done again: the last meeting of it counts, on both sides.
    meant = {step: origins[id(part)] + at for part in parts if part.rank == zero.rank for step, at in part.met.items()}
    shifts: dict[str, float] = {}
    for name in pairs:
        own = [part for part in parts if part.machine == name]
        late = [origins[id(p)] + at - meant[step] for p in own for step, at in p.met.items() if step in meant]
        if name != zero.machine and late:
            shift = statistics.median(late)
            shifts[own[0].node] = shift / 1e6
            for part in own:
                origins[id(part)] -= shift
    return origins, shifts


def _events(parts: list[Part], origins: dict[int, float]) -> Iterator[dict[str, Any]]:
    """Yield names of processes and threads, then the spans."""
    threads: dict[tuple[int, int], int] = {}
    known: set[tuple[int, int]] = set()
    for number, part in enumerate(parts):
        name = {"name": f"rank {part.rank} ({part.node})"}
        yield {"ph": "M", "name": "process_name", "pid": part.rank, "args": name}
        yield {"ph": "M", "name": "process_sort_index", "pid": part.rank, "args": {"sort_index": part.rank}}
        for label, ident, began, lasted in part.spans:
            key = (number, ident)
            if key not in threads:
                # The threads of a later attempt go on in the lines of those with the same name.
                threads[key] = _line(part, ident, [each for each in parts[:number] if each.rank == part.rank])
            line = (part.rank, threads[key])
            if line not in known:
                known.add(line)
                named = {"name": part.threads.get(ident, f"thread {threads[key]}")}
                yield {"ph": "M", "name": "thread_name", "pid": line[0], "tid": line[1], "args": named}
            yield {
                "ph": "X",
                "name": label,
                "pid": part.rank,
                "tid": threads[key],
                "ts": origins[id(part)] + began,
                "dur": lasted,
            }


def _line(part: Part, ident: int, earlier: list[Part]) -> int:
    """Return a small number for a thread: the same for threads of one rank with the same name."""
    order = dict.fromkeys(
        each.threads.get(thread, str(thread)) for each in [*earlier, part] for _, thread, _, _ in each.spans
    )
    return list(order).index(part.threads.get(ident, str(ident)))


def _incidents(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield the alerts of rank 0 as moments."""
    path = folder / "events.rank00000.jsonl"
    for line in _lines(path) if path.is_file() else ():
        at = line.get("at")
        if _number(at, FARTHEST / 1e6) and isinstance(line.get("alert"), str):
            text = {"text": str(line.get("text", ""))[:1000]}
            yield {"ph": "i", "s": "g", "name": line["alert"][:NAME], "pid": 0, "tid": 0, "ts": at * 1e6, "args": text}


def _number(value: Any, most: float = FARTHEST) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < most
