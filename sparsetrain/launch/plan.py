"""What was started, where and with what: written to launch.json beside the job."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job

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
    one; `command` is empty where this process starts the workers itself, and the ones in
    `first` have to have ended well before it."""

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
    if cluster.launcher.name != "ray":
        name = cluster.launcher.name
        raise JobError(f"cluster.launcher: this verb starts Ray; `sparsetrain launch` gives the job to {name}")
    if cluster.transport == "mpi":
        raise JobError("cluster.transport: mpi needs ranks that mpiexec has started (launchers/mpi.sh), not Ray's")
    if not cluster.address and cluster.strategy == "STRICT_SPREAD" and cluster.workers.max > 1:
        raise JobError(f"cluster.strategy: STRICT_SPREAD needs {cluster.workers.max} nodes; this machine is one")
    return LaunchPlan(
        name=job.name,
        launcher="ray",
        workers=cluster.workers.max,
        cpus=cluster.cpus_per_worker,
        gpus=cluster.gpus_per_worker,
        strategy=cluster.strategy,
        address=cluster.address,
        environment=relevant(env),
    )


def page(plan: LaunchPlan) -> str:
    """Return the whole plan for people: what is started where, the files, the command, the names of variables."""
    lines = [plan.line(), *(f"  command  {shlex.join(words)}" for words in (*plan.first, plan.command))]
    if plan.environment:
        lines.append(f"  from the environment: {', '.join(plan.environment)}")
    for file in plan.files:
        lines += [f"  file {file.path}", *(f"    {line}" for line in file.text.splitlines())]
    return "\n".join(lines)


def relevant(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names (never the values) of the variables that change a run."""
    return tuple(sorted(key for key in env if key.startswith(KEYS)))
