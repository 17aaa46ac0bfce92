"""The verb `watch`: a run as it goes on, looked at again and again until it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from sparsetrain.config.errors import JobError
from sparsetrain.launch import remote
from sparsetrain.launch.standing import Standing, launched, standing
from sparsetrain.launch.watch_view import draw
from sparsetrain.track.account import Account, account
from sparsetrain.track.jsonl import tail

EVERY = 1.0  # seconds from one look to the next
ROWS = 128  # of metrics that are looked at
GONE, STOPPED = 1, 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """A run at one moment. `states`: of its ranks, by rank; `left_s`: until its end, None where that cannot be told."""

    standing: Standing
    account: Account
    rows: list[dict[str, Any]]
    states: dict[int, str]
    left_s: float | None
    now: float


def watch_run(
    name: str, once: bool, stream: TextIO | None = None, every: float = EVERY, program: str = "sparsetrain"
) -> int:
    """Show a run until it ends, or once; return 0 when it goes on or is finished, 1 when it has ended otherwise, 130
    after Ctrl-C, which ends nothing but the view. `HOST:FOLDER` is looked at there, by the `program` there. Raises
    JobError where there is none of this name."""
    if "://" in name:
        raise JobError(f"{name}: watch reads a run folder on this machine or HOST:FOLDER by ssh, not behind a URL")
    out = stream or sys.stdout
    if place := remote.split(name):
        arguments = ["watch", *(["--once"] if once else []), "--", place[1]]
        return remote.verb(place[0], program, arguments, terminal=out.isatty() and not once)
    folder = launched(name)
    found = look(folder)
    if once or not out.isatty():
        draw(found, out)
        return 0
    try:
        return _follow(folder, found, out, every)
    except KeyboardInterrupt:
        return STOPPED


def _follow(folder: pathlib.Path, found: Seen, out: TextIO, every: float) -> int:
    from rich.live import Live

    from sparsetrain.launch.watch_view import frame, screen

    console = screen(out)
    with Live(frame(found, console.height), console=console, auto_refresh=False) as live:
        while found.standing.live:
            time.sleep(every)
            found = look(folder)
            live.update(frame(found, console.height), refresh=True)
    return 0 if found.standing.state == "finished" else GONE


def look(folder: pathlib.Path, clock: Callable[[], float] = time.time) -> Seen:
    """Return how the run is now, and never raise for what its folder holds."""
    stands = _standing(folder)
    about = account(folder)
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        rows = tail(folder / "metrics.jsonl", ROWS)
    states = {each.rank: _state(each.host, each.pid, stands.live) for each in about.ranks}
    left = left_seconds(rows, stands.steps) if stands.live else None
    return Seen(standing=stands, account=about, rows=rows, states=states, left_s=left, now=clock())


def left_seconds(rows: list[dict[str, Any]], steps: int | None) -> float | None:
    """Return how long the steps that are left will take at the pace of the last rows; None where that is not known."""
    timed = [row for row in rows if "job/wall_s" in row]
    if not timed or not steps:
        return None
    first, last = timed[0], timed[-1]
    passed, done = last["job/wall_s"] - first["job/wall_s"], last["train/step"] - first["train/step"]
    if done <= 0 or passed <= 0:  # one row only: the pace since the start
        passed, done = last["job/wall_s"], last["train/step"]
    if done <= 0 or passed < 0:
        return None
    return max(0.0, steps - last["train/step"]) * (passed / done)


def _standing(folder: pathlib.Path) -> Standing:
    try:
        return standing(folder)
    except (JobError, OSError) as error:  # half written, or taken away meanwhile
        cause = re.sub(r"\s+", " ", str(error))
        return Standing(name=folder.name, folder=str(folder), state="unknown", cause=cause)


def _state(host: str, process: int, live: bool) -> str:
    """Return how a rank is, as far as it can be seen from here."""
    if not live:
        return "ended"
    if host != socket.gethostname() or sys.platform != "linux":
        return "placed"
    return "running" if process > 0 and pathlib.Path(f"/proc/{process}").exists() else "gone"
