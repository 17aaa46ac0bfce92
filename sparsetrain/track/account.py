"""What a run folder tells beside its metrics: how the run stands, its ranks, its faults, what its planner thought.

All of it is data from elsewhere: what has another shape than we write is left out, and said to be missing.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sparsetrain.track.console import clean

T = TypeVar("T")
LARGEST = 2**24  # bytes of a JSON file
NEWEST = 2**20  # bytes of an events file
EVENTS = 200  # the last ones are kept
LONGEST = 300  # characters of a text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rank:
    """Where a rank runs."""

    rank: int
    host: str
    node: str
    pid: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened: `at` on the wall clock, for `seconds`; a fault (`lost` or `left` ranks) or an alert."""

    at: float
    step: int
    kind: str
    text: str
    seconds: float = 0.0
    fault: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to exchange as the planner saw it, in seconds of a step; `chosen` at last."""

    name: str
    predicted: float | None
    measured: float | None
    bytes: float | None
    chosen: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What the planner chose before exchange number `exchange`, and why."""

    exchange: int
    why: str
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """`missing`: what is not there, or is no such file, in words."""

    state: str = "unknown"
    cause: str = ""
    began: float | None = None
    ended: float | None = None
    workers: int | None = None
    launcher: str = ""
    versions: str = ""
    ranks: tuple[Rank, ...] = ()
    events: tuple[Event, ...] = ()
    decisions: tuple[Decision, ...] = ()
    missing: tuple[str, ...] = ()


def account(folder: pathlib.Path) -> Account:
    """Return what the run folder tells, and never raise for what is in it."""
    missing: list[str] = []
    run, launch, env = (_mapping(folder / name, missing) for name in ("run.json", "launch.json", "env.json"))
    regimes = _mapping(folder / "regimes.json", missing) if (folder / "regimes.json").exists() else {}
    events = [*_each(run.get("incidents"), _fault), *events_of(folder)]
    versions = env.get("versions")
    packages = versions.items() if isinstance(versions, dict) else ()
    return Account(
        state=text(run.get("status", "unknown")),
        cause=text(run.get("cause")),
        began=number(run.get("began")),
        ended=number(run.get("ended")),
        workers=_whole(launch.get("workers")),
        launcher=text(launch.get("launcher")),
        versions=text(", ".join(f"{name} {version}" for name, version in packages)),
        ranks=_each(launch.get("placed"), _rank),
        events=tuple(sorted(events, key=lambda event: event.at))[-EVENTS:],
        decisions=_each(regimes.get("decisions"), _decision),
        missing=tuple(missing),
    )


def events_of(folder: pathlib.Path) -> tuple[Event, ...]:
    """Return the last alerts of all ranks' events files."""
    kept: collections.deque[Event] = collections.deque(maxlen=EVENTS)
    for path in sorted(folder.glob("events.rank*.jsonl")):
        try:
            if not path.is_file():  # a pipe would keep us waiting
                continue
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - NEWEST))
                kept.extend(_each(map(_loaded, file), _alert))
        except OSError:
            continue
    return tuple(kept)


def text(value: object) -> str:
    """Return a value as a text of one line that is not too long; "" for None."""
    said = "" if value is None else clean(str(value)) if isinstance(value, str | int | float) else "?"
    return said if len(said) <= LONGEST else said[: LONGEST - 3] + "..."


def number(value: object) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _mapping(path: pathlib.Path, missing: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file; where there is none, say so in `missing`."""
    try:
        if not path.is_file():
            missing.append(f"{path.name} is not there")
            return {}
        with path.open("rb") as file:
            found = _loaded(file.read(LARGEST))
    except OSError as error:
        missing.append(f"{path.name} cannot be read: {error.strerror}")
        return {}
    if not isinstance(found, dict):
        missing.append(f"{path.name} is broken")
        return {}
    return found


def _loaded(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None


def _each(values: object, make: Callable[[dict[str, Any]], T | None]) -> tuple[T, ...]:
    """Return what `make` gives for each mapping among the values."""
    if isinstance(values, dict | str | bytes) or not isinstance(values, Iterable):
        return ()
    made = (make(value) for value in values if isinstance(value, dict))
    return tuple(each for each in made if each is not None)


def _whole(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _rank(row: dict[str, Any]) -> Rank | None:
    rank = _whole(row.get("rank"))
    if rank is None:
        return None
    return Rank(rank=rank, host=text(row.get("host")), node=text(row.get("node")), pid=_whole(row.get("pid")) or 0)


def _fault(row: dict[str, Any]) -> Event | None:
    at = number(row.get("at"))
    if at is None:
        return None
    seconds = number(row.get("seconds")) or 0.0
    source = text(row.get("from"))
    after = f"; a step was finished {seconds:.1f} s later" + (f", from {source}" if source else "")
    return Event(
        at=at,
        step=_whole(row.get("step")) or 0,
        kind="lost" if row.get("lost") else "left" if row.get("left") else "fault",
        text=text(row.get("cause")) + after,
        seconds=max(0.0, seconds),
        fault=True,
    )


def _alert(row: dict[str, Any]) -> Event | None:
    at = number(row.get("at"))
    if at is None:
        return None
    kind = text(row.get("alert", row.get("event", "event")))
    return Event(at=at, step=_whole(row.get("step")) or 0, kind=kind, text=text(row.get("text")))


def _decision(row: dict[str, Any]) -> Decision | None:
    chosen = row.get("chosen")

    def candidate(each: dict[str, Any]) -> Candidate:
        return Candidate(
            name=text(each.get("name")),
            predicted=number(each.get("predicted_s")),
            measured=number(each.get("measured_s")),
            bytes=number(each.get("bytes_per_step")),
            chosen=each.get("name") == chosen,
        )

    candidates = _each(row.get("candidates"), candidate)
    if not candidates:
        return None
    return Decision(exchange=_whole(row.get("exchange")) or 0, why=text(row.get("why")), candidates=candidates)
