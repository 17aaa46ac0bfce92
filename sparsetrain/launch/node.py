"""The verb `node`: Ray inside an allocation. One agent runs on each node; that of the first one holds Ray's head, waits
for the others, and trains; the others hold Ray's daemons until it is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Generator
from typing import TextIO

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job, parse, to_tree
from sparsetrain.launch.allocation import Allocation, from_slurm, places
from sparsetrain.launch.plan import ray_plan
from sparsetrain.launch.ray_daemons import (
    POLL,
    Daemons,
    DaemonsLost,
    answers,
    await_head,
    await_nodes,
    protected,
    running,
)
from sparsetrain.launch.run import FAILED, Shown, run_job
from sparsetrain.launch.show import progress
from sparsetrain.launch.signals import Stop, Stopped, listening, noticing
from sparsetrain.launch.supervisor import Progress
from sparsetrain.worker.notice import AGAIN, Notice
from sparsetrain.worker.rank import FIRST_WORD, TAKEN, requeued

WRONG = 2
LOOK = 3.0  # seconds of one look at whether the head is still there
GONE = 2  # times in a row that nobody listens there: it has ended


def node_verb(source: str, overrides: tuple[str, ...]) -> int:
    """Load the job, be the agent of this node, and return the exit code; this process has to end then.

    Raises JobError for a user's mistake; one in the job is said by the first node alone.
    """
    try:
        job = load_job(source, overrides)
    except JobError:
        if os.environ.get("SLURM_NODEID", "0") == "0":
            raise
        time.sleep(FIRST_WORD)
        return WRONG
    # Once the agent is done, Slurm's SIGTERM must not give its task another exit code, which would count for the job.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return node_job(job)


def node_job(job: Job) -> int:
    """Be the agent of this node and return its exit code: on the first one that of the run; on the others 0 when the
    first one has ended, 1 when this node is what failed.

    Raises JobError for a user's mistake.
    """
    with contextlib.ExitStack() as stack:
        notice = stack.enter_context(noticing())
        stop = stack.enter_context(listening())
        allocation = from_slurm(os.environ)
        os.environ.update(protected(os.environ))
        own = allocation.own_address(job.cluster.interface)
        head = f"{own if allocation.first else allocation.meeting_address()}:{allocation.port}"
        inside = _on_ray(job, head)
        daemons = _daemons(inside, allocation, own, head)
        try:
            if allocation.first:
                return _lead(inside, allocation, daemons, stop, notice)
            return _follow(inside, daemons, stop)
        except DaemonsLost as error:
            print(f"{allocation.name}: {error}", file=sys.stderr)
            return FAILED
        except Stopped:
            # srun passes on the largest code of all tasks: one that is ended after another's failure says no more.
            return FAILED


def _on_ray(job: Job, head: str) -> Job:
    """Return the job for the cluster whose head is at `head`; it has been launched, whoever it names for that. Raises
    JobError for what Ray cannot do."""
    tree = to_tree(job)
    del tree["cluster"]["launcher"]
    inside = parse({**tree, "cluster": {**tree["cluster"], "address": head}})
    ray_plan(inside)
    return inside


def _daemons(job: Job, allocation: Allocation, own: str, head: str) -> Daemons:
    cluster, workers = job.cluster, places(job, len(allocation.names))
    return Daemons(
        name=allocation.name,
        address=own,
        head=head,
        leads=allocation.first,
        cpus=math.ceil(workers * cluster.cpus_per_worker),
        gpus=math.ceil(workers * cluster.gpus_per_worker),
    )


def _lead(job: Job, allocation: Allocation, daemons: Daemons, stop: Stop, notice: Notice) -> int:
    """Hold Ray's head and run the job when all nodes are there; return its exit code."""
    limit = job.cluster.start_timeout

    def say(line: str) -> None:
        print(line, flush=True)

    with running(daemons) as ray:

        def check() -> None:
            stop.check()
            ray.check()

        await_head(daemons.head, limit, check)
        await_nodes(daemons.head, allocation.names, limit, check, say)
        code = run_job(job, shown=_noticing(notice))
    if code == AGAIN and notice.cause and requeued(os.environ["SLURM_JOB_ID"], say):
        # Slurm ends all tasks now. A job that ended by itself meanwhile would count as failed, not as queued.
        until = time.monotonic() + TAKEN
        while time.monotonic() < until:
            stop.check()
            time.sleep(POLL)
    return code


def _noticing(notice: Notice) -> Shown:
    """Return how progress is shown, and that the run is to be saved and left when the notice has come."""

    @contextlib.contextmanager
    def shown(job: Job, stream: TextIO, stop: Stop) -> Generator[Progress]:
        with progress(job, stream, stop) as told:
            yield dataclasses.replace(told, leaves=lambda: notice.cause)

    return shown


def _follow(job: Job, daemons: Daemons, stop: Stop) -> int:
    """Hold this node's daemons until the head has ended; return 0 then."""
    await_head(daemons.head, job.cluster.start_timeout, stop.check)
    with running(daemons) as ray:
        while not _gone(daemons.head, stop):
            try:
                ray.check()
            except DaemonsLost:
                if _gone(daemons.head, stop):
                    break
                raise
        return 0


def _gone(head: str, stop: Stop) -> bool:
    """Look for some seconds and return whether the head has ended: nobody listens there any more, each time."""
    for _ in range(GONE):
        until = time.monotonic() + LOOK / GONE
        while time.monotonic() < until:
            stop.check()
            time.sleep(POLL)
        try:
            if answers(head):
                return False
        except TimeoutError:  # its host may hang, or be cut off: Ray notices in time
            return False
    return True
