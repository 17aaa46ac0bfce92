"""An examination of a cluster by all its ranks: facts of each, the way between each two, and a file that all see."""

from __future__ import annotations

import dataclasses
import pathlib
import secrets
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from sparsetrain.config.job import Job
from sparsetrain.doctor.board import Absent, Board
from sparsetrain.doctor.facts import facts
from sparsetrain.doctor.peer import SLOW_S, Listener, clock_ahead, measure
from sparsetrain.worker.environment import Place

GRACE_S = 4 * SLOW_S  # of somebody who is present


@dataclasses.dataclass(kw_only=True)
class Findings:
    """What was found: facts by rank, how the way from one rank to another is, and who was silent."""

    who: str
    size: int
    facts: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    ways: dict[tuple[int, int], dict[str, Any]] = dataclasses.field(default_factory=dict)
    folder: str = ""
    silent: list[str] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as JSON holds them."""
        ways = [{"from": a, "to": b, **way} for (a, b), way in sorted(self.ways.items())]
        ranks = [{"rank": rank, **each} for rank, each in sorted(self.facts.items())]
        return {"launcher": self.who, "size": self.size, "folder": self.folder, "ranks": ranks, "ways": ways}


def examine(
    job: Job, place: Place, who: str, env: Mapping[str, str], listener: socket.socket | None = None
) -> Findings:
    """Return the findings, which are whole on rank 0 only; every rank must call this. `listener`: rank 0's socket at
    the place's port, where there is one already. Raises Absent on a rank that does not reach rank 0."""
    board = Board(place, job.cluster.start_timeout, listener)
    found = Findings(who=who, size=place.size)
    if place.rank == 0:
        board.store.set("secret", secrets.token_hex(16))
    try:
        secret = bytes.fromhex(board.store.get("secret").decode())
    except (RuntimeError, ValueError) as error:
        raise Absent(f"rank {place.rank} on {place.node} hears nothing of rank 0: {error}") from error
    own = facts(job, place, env, secret)
    server = Listener(own["address"], secret)
    marker = _marker(job) if place.rank == 0 else None
    try:
        own["port"] = server.port
        own["marker"] = str(marker) if marker else ""
        found.facts = board.gather("facts", own)
        missing = sorted(set(range(place.size)) - set(found.facts))
        found.silent += [f"rank {rank} has not come in {job.cluster.start_timeout:g} s" for rank in missing]
        _compare(found, board, place, secret)
        _travel(found, board, place, secret)
    except Absent as error:
        found.silent.append(str(error))
    finally:
        board.close()
        server.close()
        if marker is not None:
            marker.unlink(missing_ok=True)
    return found


def rounds(ranks: list[int]) -> Iterator[list[tuple[int, int]]]:
    """Yield pairs so that each two ranks meet once and nobody is in two pairs of one round."""
    seats: list[int | None] = [*ranks, *([None] if len(ranks) % 2 else [])]
    for _ in range(len(seats) - 1):
        half = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in half if a is not None and b is not None]
        seats = [seats[0], seats[-1], *seats[1:-1]]


def _compare(found: Findings, board: Board, place: Place, secret: bytes) -> None:
    """Add each rank's clock, and whether it sees the file that rank 0 has written."""
    first = found.facts[0]
    found.folder = str(pathlib.Path(first["marker"]).parent) if first["marker"] else ""
    said = {
        "ahead_s": clock_ahead(first["address"], first["port"], secret) if place.rank else 0.0,
        "shared": pathlib.Path(first["marker"]).is_file() if first["marker"] else None,
    }
    for rank, more in board.gather("compared", said, GRACE_S).items():
        found.facts[rank].update(more)


def _travel(found: Findings, board: Board, place: Place, secret: bytes) -> None:
    """Measure both ways between each two nodes, or each two ranks where there is one node."""
    heads = [rank for rank, each in found.facts.items() if each["local_rank"] == 0]
    for number, pairs in enumerate(rounds(heads if len(heads) > 1 else sorted(found.facts))):
        for turn in (0, 1):
            way: dict[str, Any] = {}
            for pair in pairs:
                if pair[turn] == place.rank:
                    there = found.facts[pair[1 - turn]]
                    way = {"to": pair[1 - turn], **measure(there["address"], there["port"], secret)}
            for rank, each in board.gather(f"way{number}.{turn}", way, GRACE_S).items():
                if each:
                    found.ways[rank, each.pop("to")] = each


def _marker(job: Job) -> pathlib.Path | None:
    """Write a file where the job's runs go, or above it, and return its path; None where nothing can be written."""
    folder = pathlib.Path(job.log.folder).expanduser().absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    path = folder / f".doctor-{secrets.token_hex(8)}"
    try:
        path.write_text("written by sparsetrain doctor, which removes it\n", encoding="utf-8")
    except OSError:
        return None
    return path
