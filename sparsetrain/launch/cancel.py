"""The verb `cancel`: end a run that goes on, as Ctrl-C would where it was started."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import socket
import time

from sparsetrain.config.errors import JobError
from sparsetrain.launch import elsewhere, slurm_job
from sparsetrain.launch.standing import LAUNCH, Standing, launched, standing
from sparsetrain.worker import existing, record

LOOK = 0.5  # seconds
TORCHRUN = ("torchrun", "torch.distributed.run")


def cancel_run(name: str, patience: float) -> int:
    """End a run and return the exit code: 0 when it has ended, 1 when it has not in `patience` seconds.

    Raises JobError where there is no such run, or it cannot be ended from here.
    """
    folder = launched(name)
    found = standing(folder)
    if not found.live and found.state != "elsewhere":
        print(f"{found.name}: is not running ({found.state})")
        return 0
    if other := elsewhere.handed(folder / LAUNCH) if found.handed else None:
        other.end()
        who = found.handed
    elif found.job:
        slurm_job.cancel(found.job)
        who = f"slurm job {found.job}"
    else:
        who = _signal(found)
    deadline = time.monotonic() + patience
    while (now := standing(folder)).live:
        if time.monotonic() > deadline:
            print(f"{found.name}: {who} has been told to end, and has not in {patience:g} s")
            return 1
        time.sleep(LOOK)
    if now.state == "lost" and existing.status(folder).get("status") == "running":  # ended before it could say so
        record.end(folder, "interrupted", "cancelled")
    again = "launching it again" if found.handed else f"`sparsetrain resume {folder}`"
    print(f"{found.name}: {who} has ended; {again} continues it")
    return 0


def _signal(found: Standing) -> str:
    """Send SIGTERM to the process that holds the run, and return its name. Raises JobError for one elsewhere."""
    held = re.fullmatch(r"process (\d+) on (\S+)", found.holder or "")
    if held is None:
        raise JobError(f"{found.name}: runs, and nobody says as which process; end it where it was started")
    number, host = int(held[1]), held[2]
    if host != socket.gethostname() or not pathlib.Path(f"/proc/{number}").exists():
        raise JobError(f"{found.name}: runs as process {number} on {host}; end it there: ssh {host} kill {number}")
    try:
        if not _holds(number, pathlib.Path(found.folder) / record.LOCK):
            raise JobError(
                f"{found.name}: its lock names process {number}, which does not hold it; end it where it was started"
            )
        os.kill(_chief(number), signal.SIGTERM)
    except PermissionError:
        raise JobError(f"{found.name}: runs as process {number}, which is another user's") from None
    except ProcessLookupError:
        pass  # it has ended just now
    return f"process {number}"


def _holds(number: int, lock: pathlib.Path) -> bool:
    """Return whether a process has a lock's file open: what stands in there may be of an earlier one. Raises
    PermissionError for another user's."""
    for opened in pathlib.Path(f"/proc/{number}/fd").iterdir():
        with contextlib.suppress(OSError):
            if opened.samefile(lock):
                return True
    return False


def _chief(number: int) -> int:
    """Return the process to tell: torchrun above a rank, which would count its end as a failure, or the one itself."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        parent = int(pathlib.Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[1])
        python, *words = pathlib.Path(f"/proc/{parent}/cmdline").read_text(errors="replace").split("\0")
        program = next((word for word in words if not word.startswith("-")), "")
        if pathlib.Path(python).name.startswith("python") and pathlib.Path(program).name in TORCHRUN:
            return parent
    return number
