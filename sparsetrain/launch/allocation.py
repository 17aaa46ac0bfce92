"""The nodes that a scheduler has given to a job, as one task of it sees them."""

from __future__ import annotations

import dataclasses
import math
import socket
import subprocess
from collections.abc import Mapping

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.worker import interface
from sparsetrain.worker.environment import meeting_port

KEYS = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NODEID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS")
ANSWER_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """The names of the nodes in their order, which of them this one is, and a port that all of them know."""

    names: tuple[str, ...]
    index: int
    port: int

    @property
    def name(self) -> str:
        """Return the name of this node."""
        return self.names[self.index]

    @property
    def first(self) -> bool:
        """Return whether this node is the one where the others meet."""
        return self.index == 0

    def meeting_address(self) -> str:
        """Return the IPv4 address of the first node. Raises JobError where its name leads nowhere: a loopback in its
        place would let every node wait for itself."""
        head = self.names[0]
        try:
            address = str(socket.getaddrinfo(head, None, socket.AF_INET)[0][4][0])
        except OSError as error:
            raise JobError(f"SLURM_STEP_NODELIST: {head}, the job's first node, has no address here: {error}") from None
        if address.startswith("127.") and len(self.names) > 1 and not self.first:
            raise JobError(f"SLURM_STEP_NODELIST: {head}, the job's first node, is {address} on {self.name}")
        return address

    def own_address(self, wanted: str | None) -> str:
        """Return the IPv4 address at which the other nodes reach this one: that of the interface `wanted`, or the one
        from which the first node is reached. Raises JobError where that is a loopback and there are others."""
        target, found = self.meeting_address(), interface.interfaces()
        if wanted is not None:
            # To a name that is the loopback on its own host every interface is fine.
            interface.choose(target, wanted, found)
            return found.get(wanted, target)
        own = target if self.first else interface.local_address(target)
        if own.startswith("127.") and len(self.names) > 1:
            raise JobError(
                f"cluster.interface: {self.name} is {own} on itself (/etc/hosts), where other nodes do not reach it;"
                f" name the interface to use, one of: {', '.join(found)}"
            )
        return own


def from_slurm(env: Mapping[str, str]) -> Allocation:
    """Return what a task of a Slurm job step sees; there has to be one task on each node.

    Raises JobError that names the variable which is missing or makes no sense.
    """
    missing = [key for key in KEYS if not env.get(key)]
    if missing:
        raise JobError(
            f"{missing[0]}: not set in the environment; `sparsetrain node` is a task of srun"
            " (`sparsetrain launch JOB --on slurm cluster.launcher.ray=true` writes the script)"
        )
    names, tasks = hostnames(env["SLURM_STEP_NODELIST"]), env["SLURM_STEP_NUM_TASKS"]
    if tasks != str(len(names)):
        raise JobError(
            f"SLURM_STEP_NUM_TASKS: {tasks} tasks on {len(names)} nodes; one for each: srun --ntasks-per-node=1"
        )
    index = env["SLURM_NODEID"]
    if not index.isdigit() or int(index) >= len(names):
        raise JobError(f"SLURM_NODEID: must be a number less than {len(names)}, the nodes (given {index!r})")
    return Allocation(names=names, index=int(index), port=meeting_port(env))


def hostnames(hosts: str) -> tuple[str, ...]:
    """Return the names in a Slurm host list, as Slurm itself reads it. Raises JobError."""
    try:
        words = ["scontrol", "show", "hostnames", hosts]
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"SLURM_STEP_NODELIST: scontrol: {error}") from None
    names = tuple(done.stdout.split())
    if done.returncode or not names:
        why = " ".join(done.stderr.split())[:200] or f"no host in {hosts!r}"
        raise JobError(f"SLURM_STEP_NODELIST: scontrol show hostnames: {why}")
    return names


def places(job: Job, nodes: int) -> int:
    """Return how many workers, spares among them, a node has to have room for."""
    return math.ceil((job.cluster.workers.max + job.recovery.spares) / nodes)
