"""The run on Ray, seen from outside: start all ranks together, show progress, and end all of them when one fails."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import to_tree
from sparsetrain.launch.failure import Failure, RunFailed, root_cause
from sparsetrain.launch.ray_cluster import bounded, placement, ray_cluster
from sparsetrain.launch.signals import undisturbed
from sparsetrain.worker import record
from sparsetrain.worker.environment import Place

PULSE = 2.0  # seconds between questions whether a rank lives
POLL = 0.5  # seconds between looks at the workers
GRACE = 1.5  # seconds after a first failure in which others may tell the cause
ECHO_GRACE = 5.0  # the same, when the first failure looks like a consequence
FORWARDED = ("WANDB_", "SPARSETRAIN_", "HF_", "NCCL_", "GLOO_")


@dataclasses.dataclass(kw_only=True)
class Member:
    """One worker as the driver knows it; `rank` is set when all are up."""

    actor: Any
    node: str
    address: str
    host: str
    pid: int
    shared: bool
    rank: int = 0
    local_rank: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return what launch.json holds of this rank."""
        keys = ("rank", "local_rank", "host", "address", "node", "pid")
        return {key: getattr(self, key) for key in keys}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where progress goes: a line of text, a row of metrics. `check` raises when the run shall stop."""

    line: Callable[[str], None]
    row: Callable[[dict[str, Any]], None]
    check: Callable[[], None] = lambda: None


def run_on_ray(job: Job, folder: pathlib.Path, progress: Progress) -> dict[str, Any]:
    """Run the job on Ray and return rank 0's result; `folder` is absolute and holds job.yaml.

    Raises RunFailed when a rank raised or died, JobError for a user's mistake. All actors are gone afterwards, and
    of an own cluster every process.
    """
    with ray_cluster(job.cluster):
        return run_there(job, folder, progress)


def run_there(job: Job, folder: pathlib.Path, progress: Progress) -> dict[str, Any]:
    """Do the same on the cluster that this process is connected to."""
    check = progress.check
    with (
        placement(job.cluster, check) as group,
        gang(job, group, folder, check) as found,
    ):
        members = ranked(found, _own_node())
        record.placed(folder, [member.as_dict() for member in members])
        if not members[0].shared:
            progress.line(f"{members[0].host} does not see {folder}: the folder is copied back, without checkpoints")
        result = supervise(job, members, folder, progress)
        if not members[0].shared:
            copy_back(members[0], folder)
        return result


@contextlib.contextmanager
def gang(job: Job, group: Any, folder: pathlib.Path, check: Callable[[], None]) -> Iterator[list[Member]]:
    """Hold one live actor per bundle of the placement group; they are killed at the end."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from sparsetrain.launch.ray_worker import RayWorker

    cluster = job.cluster
    variables = forwarded(dict(os.environ)) if cluster.address else {}
    paths = [str(pathlib.Path(path).absolute()) for path in sys.path]
    actors: list[Any] = []
    try:
        for index in range(cluster.workers.max):
            options = ray.remote(RayWorker).options(
                num_cpus=cluster.cpus_per_worker,
                num_gpus=cluster.gpus_per_worker,
                max_concurrency=3,  # the run, and two short questions beside it
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            )
            actors.append(options.remote(variables, paths, os.getcwd()))
        places = _meet(job, actors, folder, check)
        yield [Member(actor=actor, **where) for actor, where in zip(actors, places, strict=True)]
    finally:
        with undisturbed():
            bounded(lambda: [_kill(actor) for actor in actors])


def _kill(actor: Any) -> None:
    import ray

    with contextlib.suppress(Exception):  # one that is dead already
        ray.kill(actor)


def _meet(job: Job, actors: list[Any], folder: pathlib.Path, check: Callable[[], None]) -> list[dict[str, Any]]:
    """Return where every actor runs. Raises JobError when one is not up in time."""
    import ray

    calls = [actor.where.remote(str(folder / "job.yaml")) for actor in actors]
    limit = job.cluster.start_timeout
    deadline = time.monotonic() + limit
    while (up := len(ray.wait(calls, num_returns=len(calls), timeout=POLL)[0])) < len(calls):
        check()
        if time.monotonic() > deadline:
            raise JobError(f"cluster.start_timeout: {up} of {len(calls)} workers were up after {limit:g} s")
    try:
        return ray.get(calls)
    except ray.exceptions.RayError as error:
        raise RunFailed(_lost(error, Failure(rank=0, host="?", node="?", pid=0, kind="died", message=""))) from error


def ranked(members: list[Member], own_node: str) -> list[Member]:
    """Return the members in rank order: this node first, then node by node, so that local ranks are contiguous."""
    ordered = sorted(members, key=lambda m: (m.node != own_node, m.address, m.node, m.pid))
    seen: dict[str, int] = {}
    for rank, member in enumerate(ordered):
        member.rank = rank
        member.local_rank = seen.get(member.node, 0)
        seen[member.node] = member.local_rank + 1
    return ordered


def supervise(job: Job, members: list[Member], folder: pathlib.Path, progress: Progress) -> dict[str, Any]:
    """Start the loop on all members and return rank 0's result.

    Raises RunFailed with the root cause, JobError where that is a mistake of the user that only a rank could find.
    """
    import ray

    first = members[0]
    port = ray.get(first.actor.hold_port.remote(first.address))
    pending: dict[Any, Member] = {}
    for member in members:
        place = Place(
            rank=member.rank,
            size=len(members),
            local_rank=member.local_rank,
            node=member.host,
            master_addr=first.address,
            master_port=port,
        )
        pending[member.actor.run.remote(to_tree(job), place, str(folder))] = member
    results: dict[int, dict[str, Any]] = {}
    failures: list[Failure] = []
    deadline = float("inf")
    pulse = Pulse(members, job.cluster.collective_timeout)
    while pending and time.monotonic() < deadline:
        progress.check()
        failures.extend(pulse.silent(set(member.rank for member in pending.values())))
        if failures and deadline == float("inf"):
            deadline = time.monotonic() + GRACE
        for call in ray.wait(list(pending), timeout=POLL)[0]:
            member = pending.pop(call)
            answer = outcome(call, member)
            if isinstance(answer, Failure):
                failures.append(answer)
                # Neighbours of a lost rank fail within milliseconds of it: the cause may be the second to arrive.
                grace = ECHO_GRACE if all(failure.echo for failure in failures) else GRACE
                deadline = min(deadline, time.monotonic() + grace) if len(failures) == 1 else time.monotonic() + 0.3
            else:
                results[member.rank] = answer
        show(first, progress)
    if failures:
        cause = root_cause(failures)
        if cause.kind == "job":
            raise JobError(cause.message)
        raise RunFailed(cause)
    return results[0]


class Pulse:
    """Asks every rank now and then for a sign of life: a stopped process or host answers nothing and raises nothing."""

    def __init__(self, members: list[Member], limit: float) -> None:
        self.limit = limit
        self.members = {member.rank: member for member in members}
        self.asked = {member.rank: (member.actor.alive.remote(), time.monotonic()) for member in members}

    def silent(self, ranks: set[int]) -> list[Failure]:
        """Return a failure for each of `ranks` that has not answered for `limit` seconds, once."""
        import ray

        found = []
        now = time.monotonic()
        for rank in ranks & set(self.asked):
            call, at = self.asked[rank]
            member = self.members[rank]
            if ray.wait([call], timeout=0)[0]:
                if now - at > PULSE:
                    self.asked[rank] = (member.actor.alive.remote(), now)
            elif now - at > self.limit:
                del self.asked[rank]
                message = f"no sign of life for {self.limit:g} s (stopped, or its host hangs)"
                about = Failure(
                    rank=rank, host=member.host, node=member.node, pid=member.pid, kind="died", message=message
                )
                found.append(dataclasses.replace(about, at=time.time()))
        return found


def outcome(call: Any, member: Member) -> dict[str, Any] | Failure:
    """Return what a rank's `run` returned, or why it did not."""
    import ray

    about = Failure(rank=member.rank, host=member.host, node=member.node, pid=member.pid, kind="died", message="")
    try:
        answer = ray.get(call)
    except ray.exceptions.RayError as error:
        return _lost(error, about)
    if "failure" in answer:
        return dataclasses.replace(about, **answer["failure"])
    return answer["result"]


def show(first: Member, progress: Progress) -> None:
    """Print what is new on rank 0; its silence is no failure, its end shows elsewhere."""
    import ray

    try:
        lines, rows = ray.get(first.actor.poll.remote(), timeout=10)
    except (ray.exceptions.RayError, TimeoutError):
        return
    for line in lines:
        progress.line(line)
    for row in rows:
        progress.row(row)


def copy_back(first: Member, folder: pathlib.Path) -> None:
    """Write the files of rank 0's folder here; what is here already is replaced."""
    import ray

    for name, data in ray.get(first.actor.files.remote(str(folder))).items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"a worker named a file outside the run folder: {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def forwarded(env: dict[str, str]) -> dict[str, str]:
    """Return the variables that workers of another cluster need; an own cluster's workers inherit all."""
    return {key: value for key, value in env.items() if key.startswith(FORWARDED)}


def _own_node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _lost(error: Exception, about: Failure) -> Failure:
    """Return the failure of a process that is gone, with Ray's account of it."""
    message = f"{type(error).__name__}: its process is gone (killed, out of memory, crashed, or its node was lost)"
    return dataclasses.replace(about, kind="died", message=message, traceback=str(error).strip(), at=time.time())
