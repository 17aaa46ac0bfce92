"""The workers of a run as Ray actors: their places in the cluster, who is up, and what they answer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import secrets
import signal
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

from sparsetrain.config.job import Job
from sparsetrain.config.load import to_tree
from sparsetrain.launch.failure import Failure
from sparsetrain.launch.ray_cluster import bounded, placement
from sparsetrain.launch.signals import undisturbed
from sparsetrain.worker.environment import Place

FORWARDED = ("WANDB_", "SPARSETRAIN_", "HF_", "NCCL_", "GLOO_")
TRIES = 3  # workers in one place that may fail to come up
ANSWER = 10.0  # seconds for an answer to a short question


@dataclasses.dataclass(kw_only=True)
class Member:
    """One worker as the driver knows it; `rank` is set when its group is formed, `was` is the one before."""

    actor: Any
    node: str
    address: str
    host: str
    pid: int
    shared: bool
    slot: int = 0
    rank: int = 0
    local_rank: int = 0
    was: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what launch.json holds of this rank."""
        keys = ("rank", "local_rank", "host", "address", "node", "pid")
        return {key: getattr(self, key) for key in keys}

    def failure(self, message: str) -> Failure:
        """Return that this worker is gone."""
        return Failure(
            rank=self.rank,
            host=self.host,
            node=self.node,
            pid=self.pid,
            kind="died",
            message=message,
            at=time.time(),
        )


@dataclasses.dataclass
class Slot:
    """A place for one worker: a bundle of a placement group, the actor in it, and its first answer."""

    group: Any
    bundle: int
    actor: Any = None
    call: Any = None
    member: Member | None = None
    failed: int = 0  # workers that did not come up here


class RayGroup:
    """Starts workers in the places that the job asks for and kills them at the end.

    `slots` beyond those that must be there stand empty until the cluster has room for them.
    """

    def __init__(self, job: Job, folder: pathlib.Path, slots: list[Slot]) -> None:
        self.job = job
        self.folder = folder
        self.tree = to_tree(job)
        self.slots = slots
        self.asked: dict[int, Any] = {}  # questions for news that are under way, by slot

    def recruit(self) -> None:
        """Start a worker in every place that is there and has none, unless too many have failed to come up there."""
        for number, slot in enumerate(self.slots):
            if slot.actor is None and slot.failed < TRIES and slot.group.wait(timeout_seconds=0):
                slot.actor = self._actor(slot)
                slot.call = slot.actor.where.remote(str(self.folder / "job.yaml"), self.tree, str(self.folder))
                self.slots[number] = slot

    def _actor(self, slot: Slot) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from sparsetrain.launch.ray_worker import RayWorker

        cluster = self.job.cluster
        variables = forwarded(dict(os.environ)) if cluster.address else {}
        paths = [str(pathlib.Path(path).absolute()) for path in sys.path]
        options = ray.remote(RayWorker).options(
            num_cpus=cluster.cpus_per_worker,
            num_gpus=cluster.gpus_per_worker,
            max_concurrency=4,  # the run, and short questions beside it
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(slot.group, placement_group_bundle_index=slot.bundle),
        )
        return options.remote(variables, paths, os.getcwd())

    def ready(self) -> tuple[list[Member], list[Failure]]:
        """Return the workers that have come up since the last call, and what became of those that did not."""
        import ray

        up, lost = [], []
        for number, slot in enumerate(self.slots):
            if slot.call is None or not ray.wait([slot.call], timeout=0)[0]:
                continue
            call, slot.call = slot.call, None
            try:
                slot.member = Member(actor=slot.actor, slot=number, **ray.get(call))
                up.append(slot.member)
            except ray.exceptions.RayError as error:
                slot.actor = None
                slot.failed += 1
                about = Failure(rank=0, host="?", node="?", pid=0, kind="died", message="")
                lost.append(gone(error, about))
        return up, lost

    def dismiss(self, member: Member) -> None:
        """End a worker, also one that answers nothing; its place is free for another."""
        slot = self.slots[member.slot]
        if slot.member is member:
            slot.actor = slot.call = slot.member = None
            self.asked.pop(member.slot, None)
        bounded(lambda: _kill(member.actor))
        bounded(lambda: signal_there(member, signal.SIGKILL), ANSWER)

    def close(self) -> None:
        """End all workers."""
        with undisturbed():
            actors = [slot.actor for slot in self.slots if slot.actor is not None]
            bounded(lambda: [_kill(actor) for actor in actors])

    def run(self, members: list[Member]) -> dict[Any, Member]:
        """Let the members form a group and train, each as its rank; return the calls. Raises what a lost one raises."""
        import ray

        first = members[0]
        port = ray.get(first.actor.hold_port.remote(first.address), timeout=ANSWER)
        generation = secrets.token_hex(4)
        calls = {}
        for member in members:
            place = Place(
                rank=member.rank,
                size=len(members),
                local_rank=member.local_rank,
                node=member.host,
                master_addr=first.address,
                master_port=port,
                generation=generation,
            )
            calls[member.actor.run.remote(self.tree, place, str(self.folder))] = member
        return calls

    def tell(self, members: list[Member], word: str) -> None:
        """Call the method `word` on all members and wait for no answer."""
        for member in members:
            with contextlib.suppress(Exception):
                getattr(member.actor, word).remote()

    def keep(self, members: list[Member]) -> bool:
        """Let all members save when they pause next, and return whether all know: saving takes all of them."""
        import ray

        calls = [member.actor.keep.remote() for member in members]
        try:
            ray.get(calls, timeout=ANSWER)
        except ray.exceptions.RayError:  # one is lost, or slow: that shows elsewhere
            return False
        return True

    def stacks(self, members: list[Member]) -> dict[int, str]:
        """Return the stacks of the members' threads by rank, of those that answer in time."""
        import ray

        calls = {member.rank: member.actor.stacks.remote() for member in members}
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=ANSWER / 2)
        found = {}
        for rank, call in calls.items():
            with contextlib.suppress(Exception):
                found[rank] = ray.get(call, timeout=0)
        return found

    def files(self, member: Member) -> dict[str, bytes]:
        """Return the files of a member's run folder."""
        import ray

        return ray.get(member.actor.files.remote(str(self.folder)))

    def news(self, member: Member, patience: float) -> tuple[list[str], list[dict[str, Any]]]:
        """Return the lines and rows that a member has told of since the last call, and ask it for more; all that it has
        where there are seconds of `patience`. Its silence is no failure, its end shows elsewhere."""
        import ray

        lines, rows = [], []
        for _ in range(2 if patience else 1):  # what was asked before comes first
            if member.slot not in self.asked:
                self.asked[member.slot] = member.actor.poll.remote()
            call = self.asked[member.slot]
            if not ray.wait([call], timeout=patience)[0]:
                break
            del self.asked[member.slot]
            with contextlib.suppress(ray.exceptions.RayError):
                more = ray.get(call)
                lines += more[0]
                rows += more[1]
        return lines, rows

    def answers(self, calls: list[Any], timeout: float) -> list[tuple[Any, Any]]:
        """Return the calls that end within `timeout` seconds, each with its answer or the error of a lost one."""
        import ray

        found = []
        for call in ray.wait(calls, num_returns=len(calls), timeout=0)[0] or ray.wait(calls, timeout=timeout)[0]:
            try:
                found.append((call, ray.get(call)))
            except ray.exceptions.RayError as error:
                found.append((call, error))
        return found


@contextlib.contextmanager
def ray_group(job: Job, folder: pathlib.Path, check: Callable[[], None]) -> Generator[RayGroup]:
    """Hold the places of a job's workers; `check` is called while waiting for those that must be there."""
    cluster = job.cluster
    least = cluster.workers.min
    spare = cluster.workers.max - least + job.recovery.spares
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(placement(cluster, least, check))
        slots = [Slot(base, bundle) for bundle in range(least)]
        slots += [Slot(stack.enter_context(placement(cluster, 1, None)), 0) for _ in range(spare)]
        group = RayGroup(job, folder, slots)
        stack.callback(group.close)
        yield group


def gone(error: Exception, about: Failure) -> Failure:
    """Return the failure of a process that is gone, with Ray's account of it."""
    message = f"{type(error).__name__}: its process is gone (killed, out of memory, crashed, or its node was lost)"
    return dataclasses.replace(about, kind="died", message=message, traceback=str(error).strip(), at=time.time())


def forwarded(env: dict[str, str]) -> dict[str, str]:
    """Return the variables that workers of another cluster need; an own cluster's workers inherit all."""
    return {key: value for key, value in env.items() if key.startswith(FORWARDED)}


def own_node() -> str:
    """Return the id of the node that this process is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def signal_there(member: Member, number: int) -> None:
    """Send a signal to a worker's process from beside it: one that was stopped takes no order from Ray."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from sparsetrain.launch.ray_worker import signal_worker

    place = NodeAffinitySchedulingStrategy(member.node, soft=False)
    beside = ray.remote(signal_worker).options(num_cpus=0, scheduling_strategy=place)
    ray.get(beside.remote(member.pid, int(number)), timeout=ANSWER)


def _kill(actor: Any) -> None:
    import ray

    with contextlib.suppress(Exception):  # one that is dead already
        ray.kill(actor)
