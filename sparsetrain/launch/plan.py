"""What was started, where and with what: written to launch.json beside the job."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job

OURS = ("local", "ray")  # launchers whose workers the process of the verb looks after
# Prefixes of the variables that change a run. Only their names are recorded: values may be secrets.
KEYS = (
    "CUDA_VISIBLE",
    "GLOO_",
    "MASTER_",
    "NCCL_",
    "OMP_",
    "RANK",
    "RAY_",
    "SPARSETRAIN_",
    "TORCH_",
    "WANDB_",
    "WORLD_",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """A file that a launcher needs, written before its command is run."""

    path: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """How a run is started. `cpus` and `gpus` are per worker; `address` is None for a cluster of our own; `nodes` is
    None where the cluster decides; `given` is the name that a cluster elsewhere knows the run by, where that is another
    one; `command` is empty where this process starts the workers itself, and the ones in `first` have to have ended
    well before it. `interface` and `time_limit` are the job's, None where each rank takes the interface by which it
    reaches rank 0, and where there is no limit."""

    name: str
    launcher: str
    workers: int
    cpus: float
    gpus: float
    nodes: int | None = None
    strategy: str | None = None
    address: str | None = None
    environment: tuple[str, ...] = ()
    first: tuple[tuple[str, ...], ...] = ()
    command: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    given: str | None = None
    interface: str | None = None
    time_limit: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what launch.json holds."""
        return dataclasses.asdict(self)

    def line(self) -> str:
        """Return the plan in one line for people."""
        where = (
            f" at {self.address}" if self.address else f" on {self.nodes} node(s)" if self.nodes else " on this machine"
        )
        each = f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")
        order = f", {self.strategy}" if self.strategy else ""
        return f"{self.name}: {self.workers} worker(s) of {each} by {self.launcher}{where}{order}"


def ray_plan(job: Job, env: Mapping[str, str] = os.environ) -> LaunchPlan:
    """Return the plan of a run on Ray: the local machine, or the cluster that the job names.

    Raises JobError for what no machine can give.
    """
    cluster = job.cluster
    name = cluster.launcher.name
    if name not in OURS:
        raise JobError(f"cluster.launcher: this verb starts Ray; `sparsetrain launch` gives the job to {name}")
    if name == "local" and cluster.address:
        raise JobError(f"cluster.address: {cluster.address} is a cluster, and cluster.launcher=local is this machine")
    if cluster.transport == "mpi":
        raise JobError("cluster.transport: mpi needs ranks that mpiexec has started (launchers/mpi.sh), not Ray's")
    if not cluster.address and cluster.strategy == "STRICT_SPREAD" and cluster.workers.max > 1:
        raise JobError(f"cluster.strategy: STRICT_SPREAD needs {cluster.workers.max} nodes; this machine is one")
    return LaunchPlan(
        name=job.name,
        launcher=name,
        workers=cluster.workers.max,
        cpus=cluster.cpus_per_worker,
        gpus=cluster.gpus_per_worker,
        strategy=cluster.strategy,
        address=cluster.address,
        environment=relevant(env),
        interface=cluster.interface,
        time_limit=cluster.time_limit,
    )


def page(plan: LaunchPlan) -> str:
    """Return the whole plan for people: what is started where, the files, the command, the names of variables."""
    lines = [plan.line(), *terms(plan)]
    lines += [f"  command  {shlex.join(words)}" for words in (*plan.first, plan.command)]
    if plan.environment:
        lines.append(f"  from the environment: {', '.join(plan.environment)}")
    for file in plan.files:
        lines += [f"  file {file.path}", *(f"    {line}" for line in file.text.splitlines())]
    return "\n".join(lines)


def terms(plan: LaunchPlan) -> list[str]:
    """Return for people over which network interface ranks meet, and how long they may take."""
    over = plan.interface or "the one by which a rank reaches rank 0 (cluster.interface)"
    limit = "none (cluster.time_limit)" if plan.time_limit is None else f"{plan.time_limit:g} s, then saved and left"
    return [f"  interface  {over}", f"  time limit  {limit}"]


def relevant(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names (never the values) of the variables that change a run."""
    return tuple(sorted(key for key in env if key.startswith(KEYS)))
