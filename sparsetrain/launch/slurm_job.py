"""A job in Slurm's hands: submitted, followed, cancelled."""

from __future__ import annotations

import contextlib
import pathlib
import re
import time
from typing import TextIO

from sparsetrain.config.errors import JobError
from sparsetrain.config.files import write_whole
from sparsetrain.launch.plan import LaunchPlan
from sparsetrain.launch.program import answer
from sparsetrain.launch.run import STOPPED
from sparsetrain.launch.signals import Stopped, listening

POLL_S = 1.0
NUMBER = "slurm"  # the file that holds the number of the job
SILENCE_S = 300.0  # a controller that is started anew, or another that takes over
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING", "STOPPED", "SIGNALING")


def submit(plan: LaunchPlan, folder: pathlib.Path) -> str:
    """Submit the plan's script, note the number of the job in `folder`, and return it. Raises JobError with what Slurm
    says."""
    said = answer(*plan.command)
    number = said.strip().split(";")[0]
    if not number.isdigit():
        raise JobError(f"cluster.launcher: sbatch answered {said.strip()[:200]!r}, not the number of a job")
    with contextlib.suppress(OSError):
        write_whole(folder / NUMBER, f"{number}\n")
    return number


def follow(number: str, output: pathlib.Path, stream: TextIO) -> int:
    """Copy the job's output to `stream` until the job ends, and return its exit code; Ctrl-C and SIGTERM cancel it.
    Raises JobError when Slurm has not answered for some minutes; the job goes on then."""
    seen, state, code, heard, told = 0, "", 0, time.monotonic(), ""
    with listening() as stop:
        try:
            while state in ("", *ALIVE):
                stop.check()
                try:
                    found, code = status(number)
                except JobError as error:
                    if time.monotonic() - heard > SILENCE_S:
                        raise
                    told = _say(str(error), told, stream)
                    time.sleep(POLL_S)
                    continue
                heard = time.monotonic()
                if found not in ("RUNNING", "COMPLETING"):
                    told = _say(f"slurm: {found.lower()}", told, stream)
                state, seen = found, _copy(output, seen, stream)
                time.sleep(POLL_S if state in ALIVE else 0.0)
        except Stopped:
            cancel(number)
            _say(f"slurm: job {number} is cancelled", told, stream)
            return STOPPED
    return code if state in ("COMPLETED", "FAILED") else code or 1


def pending(folder: pathlib.Path) -> str:
    """Return the number of the job that was submitted from `folder` and that Slurm has not ended, "" where none is: a
    copied folder, or a number that Slurm has given again, is no job of its own."""
    path = folder / NUMBER
    try:
        number = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if not number.isdigit():
            return ""
        said = answer("scontrol", "show", "job", number)
        output = re.search(r"^\s*StdOut=(.+)$", said, re.MULTILINE)
        own = output is not None and pathlib.Path(output[1]).parent.resolve() == folder.resolve()
        return number if own and _state(said, number)[0] in ALIVE else ""
    except (OSError, ValueError, JobError):  # Slurm forgets jobs some minutes after their end
        return ""


def cancel(number: str) -> None:
    """Take a job out of the queue, or end it. Raises JobError with what Slurm says."""
    answer("scancel", number)


def status(number: str) -> tuple[str, int]:
    """Return the state of a job and its exit code, (128 + signal where one ended it). Raises JobError."""
    return _state(answer("scontrol", "show", "job", number), number)


def _state(said: str, number: str) -> tuple[str, int]:
    state = re.search(r"JobState=(\S+)", said)
    code = re.search(r"\bExitCode=(\d+):(\d+)", said)
    if state is None or code is None:
        raise JobError(f"cluster.launcher: scontrol does not tell the state of job {number}")
    number_of, by = int(code.group(1)), int(code.group(2))
    return state.group(1), 128 + by if by else number_of


def _say(line: str, told: str, stream: TextIO) -> str:
    """Print a line, but for the one that was `told` last, and return it."""
    if line != told:
        print(line, file=stream, flush=True)
    return line


def _copy(path: pathlib.Path, seen: int, stream: TextIO) -> int:
    """Write what the file has beyond `seen` bytes; return where it ends."""
    if not path.exists():
        return seen
    with path.open("rb") as file:
        file.seek(seen)
        fresh = file.read()
    stream.write(fresh.decode(errors="replace"))
    stream.flush()
    return seen + len(fresh)
