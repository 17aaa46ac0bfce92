"""A process that reads cases, watched from another: one that dies or stays with a case too long is a finding too."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from tests.fuzz.engine import Tally, write_finding
from tests.fuzz.slot import Slot

POLL = 0.2  # seconds between looks
START = 180.0  # seconds for imports, kernels to compile and the first case
RESTARTS = 50
SINGLE = {"OMP_NUM_THREADS": "1"}  # tensors this small are no work for threads, which would wait for each other


def watched(
    arguments: Sequence[str], count: int, seconds: float, limit: float, out: pathlib.Path, env: Mapping[str, str]
) -> Tally:
    """Run `python -m tests.fuzz --inside FOLDER --first N` until `count` cases have been read, and return the sum.

    A child that dies, or needs more than `limit` seconds for one case, is ended; the case is written to `out`, and
    another child goes on behind it with a corpus of its own. Raises RuntimeError when a child reads nothing at all.
    """
    total, began = Tally(), time.monotonic()
    for _ in range(RESTARTS):
        left = seconds - (time.monotonic() - began)
        if total.cases >= count or left <= 0:
            break
        with tempfile.TemporaryDirectory(prefix="sparsetrain-fuzz-", dir=_memory()) as folder:
            room = pathlib.Path(folder)
            slot = Slot(room / "slot")
            inside = ["--inside", folder, "--first", str(total.cases), "--seconds", str(left)]
            with (room / "stderr").open("w+b") as stderr:
                command = [sys.executable, "-m", "tests.fuzz", *arguments, *inside]
                child = subprocess.Popen(command, stderr=stderr, env={**env, "TMPDIR": folder, **SINGLE})
                try:
                    problem = _wait(child, slot, limit)
                finally:
                    child.kill()
                    child.wait()
                stderr.seek(0)
                said = stderr.read().decode(errors="replace")
            number, case = slot.get()
            report = room / "tally.json"
            part = Tally(**json.loads(report.read_text(encoding="utf-8"))) if report.exists() else Tally()
            if problem and not case:
                raise RuntimeError(f"no case was read:\n{said}")
            if problem:
                write_finding(out, f"{problem} {number}", case, said[-20_000:])
                part.findings[problem] = 1
                part.cases = number + 1
            _add(total, part)
    total.seconds = time.monotonic() - began
    return total


def _wait(child: subprocess.Popen[bytes], slot: Slot, limit: float) -> str:
    """Return "" when the child has ended well, otherwise what became of it."""
    at, since, begun = slot.get()[0], time.monotonic(), False
    while child.poll() is None:
        time.sleep(POLL)
        number = slot.get()[0]
        if number != at:
            at, since, begun = number, time.monotonic(), True
        elif time.monotonic() - since > (limit if begun else START):
            child.send_signal(signal.SIGABRT)  # faulthandler says where it was
            time.sleep(2)
            return "hang"
    return "" if child.returncode == 0 else f"process ended with {child.returncode}"


def _add(total: Tally, part: Tally) -> None:
    for field in ("accepted", "refused"):
        setattr(total, field, getattr(total, field) + getattr(part, field))
    for field in ("cases", "corpus", "lines", "slowest_s"):
        setattr(total, field, max(getattr(total, field), getattr(part, field)))
    for where, times in part.findings.items():
        total.findings[where] = total.findings.get(where, 0) + times


def report(tally: Tally) -> str:
    """Return a tally as JSON."""
    return json.dumps(dataclasses.asdict(tally))


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
