"""The examination as ranks do it that torchrun, mpiexec or srun has started, and what is said of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.doctor.board import Absent
from sparsetrain.doctor.examination import Findings, examine
from sparsetrain.doctor.problems import problems
from sparsetrain.doctor.table import page
from sparsetrain.worker.environment import from_environment, launcher
from sparsetrain.worker.mpi_ranks import find_place

FLAWED = 1


def example(words: Sequence[str]) -> Job:
    """Return the job that the words JOB [KEY=VALUE ...] name; without JOB, one that asks for nothing. Raises
    JobError."""
    named = [word for word in words if "=" not in word]
    if len(named) > 1:
        raise JobError(f"doctor: one JOB at most, then settings like cluster.interface=eth0 (given {named[1]!r})")
    settings = tuple(word for word in words if "=" in word)
    return load_job(named[0] if named else "quickstart", settings)


def examine_as_rank(job: Job, as_json: bool) -> int:
    """Take part as the rank that the environment describes; rank 0 prints the page. Return the exit code: 1 where
    something is wrong, and this is rank 0, or it reaches nobody.

    Raises JobError where no launcher has started this process.
    """
    who = launcher(os.environ)
    if who == "process":
        raise JobError(
            "doctor: --cluster needs a cluster: name one of Ray (cluster.address=HOST:PORT), or start it as each rank"
            " (srun, mpiexec or torchrun: python -m sparsetrain.doctor [JOB])"
        )
    try:
        place, _mpi, listener = find_place(job) if who == "mpi" else (from_environment(os.environ), None, None)
        found = examine(job, place, who, os.environ, listener)
    except Absent as error:
        print(error, file=sys.stderr, flush=True)
        return FLAWED
    return conclude(job, found, as_json) if place.rank == 0 else 0


def conclude(job: Job, found: Findings, as_json: bool) -> int:
    """Print what was found, and return the exit code: 1 where something is wrong."""
    lines = problems(job, found)
    print(json.dumps({**found.as_dict(), "problems": lines}, indent=2) if as_json else page(found, lines), flush=True)
    return FLAWED if lines else 0
