"""Network namespaces with an owner: their names say which process made them, so that what a killed one left is found.

A name is st<process id>x<start time of that process>x<random>, then h<number> or hub. The start time
tells the owner from a later process that got the same id; the random part tells several sets of one process apart.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Collection

FOLDER = pathlib.Path("/var/run/netns")  # where iproute2 keeps the names
NAME = re.compile(r"st(?P<pid>\d+)x(?P<started>[0-9a-f]+)x[0-9a-f]{6}h(\d+|ub)")
GRACE_S = 3.0


class CommandFailed(RuntimeError):
    """A system command refused; the text is the command and what it said, in one line."""


def command(*words: str) -> str:
    """Run a system command and return what it printed; raises CommandFailed in one line."""
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C at the terminal must not cut it short
    )
    if done.returncode:
        reason = "; ".join(done.stderr.split("\n")).strip("; ") or f"exit code {done.returncode}"
        raise CommandFailed(f"`{' '.join(words)}`: {reason}")
    return done.stdout


def prefix() -> str:
    """Return a new beginning for names of namespaces that this process owns."""
    return f"st{os.getpid()}x{_started(os.getpid()) or 0:x}x{secrets.token_hex(3)}"


def names() -> list[str]:
    """Return all names of this form on the machine, sorted; those of other processes too."""
    if not FOLDER.is_dir():
        return []
    return sorted(path.name for path in FOLDER.iterdir() if NAME.fullmatch(path.name))


def sweep() -> list[str]:
    """Remove the namespaces whose owner is dead, and end the processes in them; return their names. Needs root."""
    orphans = []
    for name in names():
        match = NAME.fullmatch(name)
        if match and _started(int(match["pid"])) != int(match["started"], 16):
            orphans.append(name)
    remove(orphans)
    return orphans


def remove(which: Collection[str], processes: Collection[subprocess.Popen[str]] = ()) -> None:
    """End `processes` and all that run inside the namespaces, first by SIGTERM, then by SIGKILL; remove the names.

    A name that is not there is no error.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_S
        told: set[int] = set()
        while (waiting := _living(which, processes)) and time.monotonic() < deadline:
            for pid in waiting - told:  # once each: a second SIGTERM means "at once" to some; new ones may appear
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= waiting
            time.sleep(0.02)
    for name in which:
        with contextlib.suppress(CommandFailed):  # another process's sweep may have been faster
            if (FOLDER / name).exists():
                command("ip", "netns", "del", name)


def _living(which: Collection[str], processes: Collection[subprocess.Popen[str]]) -> set[int]:
    """Return the ids of those `processes` that have not ended (ended ones are reaped) and of all inside."""
    return {process.pid for process in processes if process.poll() is None} | inside(which)


def inside(which: Collection[str]) -> set[int]:
    """Return the ids of the processes, other than this one, that run in any of the named namespaces."""
    wanted = set()
    for name in which:
        with contextlib.suppress(OSError):
            wanted.add(_identity(FOLDER / name))
    found = set()
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or a zombie: it is in no namespace
            if _identity(entry / "ns/net") in wanted:
                found.add(int(entry.name))
    return found - {os.getpid()}


def _identity(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _started(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None when it is dead or waits to be reaped."""
    try:
        state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
