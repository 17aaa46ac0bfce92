"""A job in Slurm's hands: submitted, followed, cancelled."""

from __future__ import annotations

import pathlib
import re
import subprocess
import time
from typing import TextIO

from sparsetrain.config.errors import JobError
from sparsetrain.launch.plan import LaunchPlan
from sparsetrain.launch.run import STOPPED

ANSWER_S = 60.0
POLL_S = 1.0
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING", "STOPPED", "SIGNALING")


def submit(plan: LaunchPlan) -> str:
    """Submit the plan's script and return the number of the job. Raises JobError with what Slurm says."""
    said = _call(*plan.command)
    number = said.strip().split(";")[0]
    if not number.isdigit():
        raise JobError(f"cluster.launcher: sbatch answered {said.strip()[:200]!r}, not the number of a job")
    return number


def follow(number: str, output: pathlib.Path, stream: TextIO) -> int:
    """Copy the job's output to `stream` until the job ends, and return its exit code; Ctrl-C cancels it."""
    seen, state = 0, ""
    try:
        while True:
            found, code = status(number)
            if found != state and found not in ("RUNNING", "COMPLETING"):
                print(f"slurm: {found.lower()}", file=stream, flush=True)
            state = found
            seen = _copy(output, seen, stream)
            if state not in ALIVE:
                _copy(output, seen, stream)
                return code if state in ("COMPLETED", "FAILED") else code or 1
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        _call("scancel", number)
        print(f"slurm: job {number} is cancelled", file=stream, flush=True)
        return STOPPED


def status(number: str) -> tuple[str, int]:
    """Return the state of a job and its exit code, (128 + signal where one ended it). Raises JobError."""
    said = _call("scontrol", "show", "job", number)
    state = re.search(r"JobState=(\S+)", said)
    code = re.search(r"\bExitCode=(\d+):(\d+)", said)
    if state is None or code is None:
        raise JobError(f"cluster.launcher: scontrol does not tell the state of job {number}")
    number_of, by = int(code.group(1)), int(code.group(2))
    return state.group(1), 128 + by if by else number_of


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


def _call(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"cluster.launcher: {words[0]}: {error}") from None
    if done.returncode:
        raise JobError(
            f"cluster.launcher: {pathlib.Path(words[0]).name} refuses: {' '.join(done.stderr.split())[:300]}"
        )
    return done.stdout
