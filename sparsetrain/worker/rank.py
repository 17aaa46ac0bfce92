"""`python -m sparsetrain.worker JOB [a.b=c ...]`: one rank under torchrun, mpiexec or srun, or a run of a single
process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.worker import existing, record, stored
from sparsetrain.worker.environment import from_environment, launcher, rank_of, starter
from sparsetrain.worker.main import check_size
from sparsetrain.worker.mpi_ranks import find_place
from sparsetrain.worker.notice import AGAIN, FAILED, SIGNAL, Notice, last_words
from sparsetrain.worker.session import Session

MISTAKE = 2  # exit code
TAKEN = 60.0  # seconds in which Slurm has to end the tasks of a job that it has taken back
FIRST_WORD = 3.0  # seconds: whoever started the ranks ends all with the first, and only rank 0 says what they all found


class Misplaced(JobError):
    """What this process is told of its place makes no sense; others may be told well."""


def run(arguments: list[str], say: Callable[[str], None], notice: Notice) -> int:
    """Train as one rank and return the exit code: 0, 1 (failed), 75 (saved after a notice, to go on later).

    Raises JobError for a user's mistake."""
    if not arguments:
        raise JobError("job: is missing; usage: python -m sparsetrain.worker JOB [a.b=c ...]")
    job = load_job(arguments[0], tuple(arguments[1:]))
    who, by = launcher(os.environ), starter(os.environ)  # before this process says of itself what torchrun would
    try:
        if who == "mpi" or (who == "slurm" and job.cluster.transport == "mpi"):
            place, mpi, listener = find_place(job)
        else:
            place, mpi, listener = from_environment(os.environ), None, None
    except JobError as error:
        raise Misplaced(str(error)) from error
    job = check_size(job, place)
    os.environ.update(place.variables())
    folder = record.run_folder(job)
    if existing.finished(job, folder):
        say(f"{job.name}: already finished ({folder})")
        return 0
    stored.refuse(job, folder, fresh=False)
    where = f"rank {place.rank} on {place.node}"
    with record.held(folder) if place.rank == 0 else contextlib.nullcontext():
        if place.rank == 0:
            plan = {
                "name": job.name,
                "launcher": by,
                "workers": place.size,
                **dataclasses.asdict(place),
            }
            record.begin(job, folder, plan)
            if job.cluster.time_limit is not None:  # what one rank wants all do
                notice.after(job.cluster.time_limit)
        try:
            signal.signal(signal.SIGTERM, _stopped)
            session = Session(job, folder, say, mpi=mpi, saves=True)
            notice.to(session.ask)
            result = session.run(place, listener)
        except JobError as error:
            _end(folder, "failed", str(error), MISTAKE)
            # Other ranks may not have found this mistake, so each that has says it.
            raise JobError(str(error) if place.size == 1 else f"{where}: {error}") from error
        except KeyboardInterrupt as error:
            _end(folder, "interrupted", str(error) or "SIGINT")  # its code is that of whoever has ended it
            # srun passes on the largest code of all tasks: one that is ended after another's failure says no more.
            return 130 if place.size == 1 else FAILED
        except Exception as error:
            cause = f"{where} failed: {type(error).__name__}: {error}"
            _end(folder, "failed", cause, FAILED)
            print(f"{cause}\n{traceback.format_exc()}", file=sys.stderr)
            return FAILED
        if result.get("paused"):
            cause = notice.cause or SIGNAL  # the signal may have come to another rank
            code, number = AGAIN, os.environ.get("SLURM_JOB_ID")
            if place.rank:
                time.sleep(FIRST_WORD)  # rank 0 knows the cause, and whether all is saved
            else:
                status, code, words = last_words(job.name, result, cause)
                _end(folder, status, cause, code)
                say(words)
            if number and cause == SIGNAL and (place.rank or (code == AGAIN and requeued(number, say))):
                # Slurm ends all tasks now. A job that ended by itself meanwhile would count as failed, not as queued.
                time.sleep(TAKEN)
            return code
        if place.rank == 0:
            record.end(folder, "finished", result=result)
            say(f"run folder  {folder}")
    return 0


def requeued(number: str, say: Callable[[str], None]) -> bool:
    """Put this Slurm job back into the queue, say what came of it, and return whether it is there."""
    try:
        done = subprocess.run(["scontrol", "requeue", number], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"slurm: job {number} is not requeued: {error}")
        return False
    why = f"not requeued: {' '.join(done.stderr.split())}" if done.returncode else "requeued"
    say(f"slurm: job {number} is {why}")
    return not done.returncode


def main(notice: Notice) -> None:
    """Run this process's rank and exit; only rank 0 speaks, except about its own failure."""
    try:
        _main(notice)
    except KeyboardInterrupt:
        # Ended from outside while it was saying, or writing, why it ends.
        os._exit(1)


def _main(notice: Notice) -> None:
    rank = rank_of(os.environ)

    def say(line: str) -> None:
        if rank == "0":
            print(line, flush=True)

    try:
        code = run(sys.argv[1:], say, notice)
    except JobError as error:
        said = str(error)
        if rank != "0" and not said.startswith("rank "):
            time.sleep(FIRST_WORD)
            said = f"rank {rank}: {said}" if isinstance(error, Misplaced) else ""
        if said:
            print(" ".join(said.split()), file=sys.stderr)
        code = MISTAKE
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of a process group, broken or not, would now and then abort an ordinary exit, or hold it.
    os._exit(code)


def _stopped(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a launcher may say it twice, and the second must not cut off the last words
    raise KeyboardInterrupt(signal.Signals(number).name)


def _end(folder: pathlib.Path, state: str, cause: str, code: int | None = None) -> None:
    """Record how the run ended, on whichever rank knows it first: what others meet later is a consequence."""
    if existing.status(folder).get("status") == "running":
        record.end(folder, state, cause, code=code)
