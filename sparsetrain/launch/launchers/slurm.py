"""A Slurm allocation: srun starts one worker a task, without Ray, or one agent a node that starts Ray there."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from typing import Annotated

from pydantic import Field

from sparsetrain.config.errors import JobError
from sparsetrain.config.numbers import Count, Positive
from sparsetrain.launch.allocation import places
from sparsetrain.launch.launchers.request import MODULE, Request
from sparsetrain.launch.plan import File, LaunchPlan

# Options end up as words in a script that Slurm reads line by line.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:@%+-]*$", max_length=200)]
Time = Annotated[str, Field(pattern=r"^([0-9]+-)?[0-9]{1,3}(:[0-9]{2}){0,2}$")]

SCRIPT = """\
#!/bin/bash
{comment}{directives}
set -eu
# A virtual environment, modules or a container of yours go here.
{notes}
exec srun --kill-on-bad-exit=1 --wait=30 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" {worker}
"""
RANKS = "# A failing rank ends the others at once; ranks find each other on the job's first node."
AGENTS = """\
# Whoever has this token can use the job's Ray, nobody else; it is in the environment of this job alone.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
# One agent a node: that of the first one starts Ray's head, waits for the others, and trains."""


class Slurm:
    """A batch job whose tasks are the workers; it saves and queues again before its time is over."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`time` as Slurm writes it; `notice` seconds before it is over the job saves and queues again (0: never).
        `ray`: Ray starts the workers inside the allocation, and replaces those that are lost."""

        nodes: Positive = 1
        time: Time = "01:00:00"
        partition: Word | None = None
        account: Word | None = None
        qos: Word | None = None
        constraint: Word | None = None
        notice: Count = 120
        ray: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be submitted. Raises JobError for a mistake in the job."""
        job = request.job
        ray = self.config.ray
        if ray and job.cluster.transport == "mpi":
            raise JobError("cluster.transport: mpi needs ranks that srun has started, not Ray's (cluster.launcher.ray)")
        tasks = 1 if ray else request.per_node(self.config.nodes, "cluster.launcher.nodes")
        sbatch = request.program("sbatch", "submit from a machine of the cluster")
        path = f"{request.folder}/slurm.sbatch"
        if not re.fullmatch(r"[\w/.,:@+-]+", request.folder):
            raise JobError(
                f"log.folder: Slurm's scripts take no such folder: {request.folder!r}; use letters, digits, -_."
            )
        cpus, gpus = job.cluster.cpus_per_worker, job.cluster.gpus_per_worker
        each = places(job, self.config.nodes) if ray else 1  # workers of a task
        lines = self.directives(job.name, f"{request.folder}/%j.out", tasks, each * cpus, each * gpus)
        module = ("-m", "sparsetrain", "node") if ray else MODULE
        text = script(lines, shlex.join([request.python, *module, request.path]), ray=ray)
        return request.plan("slurm", self.config.nodes, (sbatch, "--parsable", path), (File(path=path, text=text),))

    def directives(self, name: str, output: str, tasks: int, cpus: float = 1.0, gpus: float = 0.0) -> list[str]:
        """Return the options of sbatch for so many tasks a node, each with so many CPUs and GPUs."""
        config = self.config
        lines = [f"--job-name={name}", f"--nodes={config.nodes}", f"--ntasks-per-node={tasks}"]
        lines.append(f"--cpus-per-task={math.ceil(cpus)}")
        if gpus:
            lines.append(f"--gpus-per-task={math.ceil(gpus)}")
        lines.append(f"--time={config.time}")
        for name in ("partition", "account", "qos", "constraint"):
            if value := getattr(config, name):
                lines.append(f"--{name}={value}")
        lines += [f"--output={output}", "--open-mode=append"]
        return [*lines, "--requeue", f"--signal=USR1@{config.notice}"] if config.notice else [*lines, "--no-requeue"]


def script(directives: list[str], worker: str, comment: str = "", ray: bool = False) -> str:
    """Return a batch script that runs `worker` in every task; `ray`: it is an agent, and needs a token."""
    lines = "\n".join(f"#SBATCH {line}" for line in directives)
    return SCRIPT.format(comment=comment, directives=lines, notes=AGENTS if ray else RANKS, worker=worker)
