"""Which rank this process is, read from its launcher: a value, never a global."""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Mapping

from sparsetrain.config.errors import JobError

TORCHRUN_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Rank and size as MPICH and Intel MPI, Open MPI, and PMIx tell them.
MPI_KEYS = (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMIX_RANK", ""))
SLURM_KEYS = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
SLURM_PORTS = range(20_000, 30_000)  # below those that systems give out by themselves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Rank of size, the rank inside its node, the node's name, and where rank 0 can be met.

    `generation` names the group: a rank of an earlier one, cut off and back, must not write what a later one writes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node: str = "localhost"
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    generation: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise JobError(f"RANK: must be at least 0 and less than WORLD_SIZE ({self.size}) (given {self.rank})")
        if not 0 <= self.local_rank < self.size:
            raise JobError(f"LOCAL_RANK: must be at least 0 and less than WORLD_SIZE (given {self.local_rank})")
        if self.size > 1 and not 0 < self.master_port < 65536:
            raise JobError(f"MASTER_PORT: must be a port from 1 to 65535 (given {self.master_port})")

    def variables(self) -> dict[str, str]:
        """Return the environment that libraries expect of this rank (LOCAL_RANK is needed by DeepSpeed)."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def launcher(env: Mapping[str, str]) -> str:
    """Return who started this process: torchrun, mpi, slurm (srun), or process (nobody who says so)."""
    if "RANK" in env or "WORLD_SIZE" in env:
        return "torchrun"
    task = (env.get("SLURM_PROCID"), env.get("SLURM_STEP_NUM_TASKS")) if env.get("SLURM_STEP_ID") else (None, None)
    for rank, size in MPI_KEYS:
        # srun may offer MPI to what it starts. An mpiexec inside a job inherits the task of the node that it is on.
        if rank in env and (env[rank], env.get(size, task[1])) != task:
            return "mpi"
    return "slurm" if task[0] is not None else "process"


def starter(env: Mapping[str, str]) -> str:
    """Return the launcher's name for people: as `launcher`, and DeepSpeed's, which sets what torchrun does and more."""
    who = launcher(env)
    return "deepspeed" if who == "torchrun" and "CROSS_RANK" in env else who


def rank_of(env: Mapping[str, str]) -> str:
    """Return the rank as the launcher tells it, for a process that does not know more yet."""
    keys = {"torchrun": ["RANK"], "slurm": ["SLURM_PROCID"], "mpi": [rank for rank, _ in MPI_KEYS], "process": []}
    return next((env[key] for key in keys[launcher(env)] if key in env), "0")


def from_environment(env: Mapping[str, str]) -> Place:
    """Return the place that torchrun or srun describes, or that of a single process when there is no launcher.

    The variables of mpiexec do not say where rank 0 is: worker/mpi_ranks.py asks MPI.
    """
    who = launcher(env)
    if who == "torchrun":
        return from_torchrun(env)
    return from_slurm(env) if who == "slurm" else Place(node=socket.gethostname())


def from_slurm(env: Mapping[str, str]) -> Place:
    """Return the place of a task that srun started; rank 0 is met on the step's first node, at a port that follows
    from the job's number unless MASTER_PORT names one.

    Raises JobError that names the variable which is missing or makes no sense.
    """
    missing = [key for key in SLURM_KEYS if not env.get(key)]
    if missing:
        raise JobError(f"{missing[0]}: not set in the environment; srun sets all of {', '.join(SLURM_KEYS)}")
    return Place(
        rank=_number(env, "SLURM_PROCID"),
        size=_number(env, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(env, "SLURM_LOCALID"),
        node=env.get("SLURMD_NODENAME") or socket.gethostname(),
        master_addr=env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"]),
        master_port=_number(env, "MASTER_PORT") if env.get("MASTER_PORT") else meeting_port(env),
    )


def meeting_port(env: Mapping[str, str]) -> int:
    """Return the port that follows from the numbers of a Slurm job and its step: all tasks know it, and no two steps
    that are near each other share it. Raises JobError where they are no numbers."""
    step = _number(env, "SLURM_STEP_ID") if env.get("SLURM_STEP_ID") else 0
    return SLURM_PORTS[(_number(env, "SLURM_JOB_ID") * 31 + step) % len(SLURM_PORTS)]


def first_host(hosts: str) -> str:
    """Return the first name of a Slurm host list: node[03-07,9],other -> node03. Raises JobError."""
    found = re.match(r"([^\[,]*)(?:\[([0-9]+)[^\]]*\]([^,\[]*))?(?=,|$)", hosts)
    if found is None or not found.group(0):
        raise JobError(f"SLURM_STEP_NODELIST: not a list of hosts that is understood here (given {hosts!r})")
    prefix, number, suffix = found.groups(default="")
    return prefix + number + suffix


def from_torchrun(env: Mapping[str, str]) -> Place:
    """Return the place that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe.

    Raises JobError that names the variable which is missing or not a number.
    """
    missing = [key for key in TORCHRUN_KEYS if not env.get(key)]
    if missing:
        given = ", ".join(key for key in TORCHRUN_KEYS if env.get(key)) or "none"
        raise JobError(
            f"{missing[0]}: not set in the environment; torchrun sets all of {given} and {', '.join(missing)}"
        )
    return Place(
        rank=_number(env, "RANK"),
        size=_number(env, "WORLD_SIZE"),
        local_rank=_number(env, "LOCAL_RANK"),
        node=socket.gethostname(),
        master_addr=env["MASTER_ADDR"],
        master_port=_number(env, "MASTER_PORT"),
    )


def _number(env: Mapping[str, str], key: str) -> int:
    try:
        return int(env[key])
    except ValueError:
        raise JobError(f"{key}: must be a whole number (given {env[key]!r})") from None
