"""A Slurm allocation: srun starts one worker a task, or one process a node that starts the workers there: torchrun, or
an agent that starts Ray."""

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
set -euo pipefail
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
TORCHRUNS = """\
# One torchrun a node; ranks meet on the job's first node. Slurm's notice is for the ranks, it would end torchrun.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# shellcheck disable=SC2016 # the shell of each task fills in what is its own"""
INNER = """\
trap "" USR1; exec {program} --nnodes "$SLURM_JOB_NUM_NODES" --node-rank "$SLURM_NODEID" --nproc-per-node {each} \
--master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" -m sparsetrain.worker "$@\""""


class Slurm:
    """A batch job whose tasks are the workers; it saves and queues again before its time is over."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`time` as Slurm writes it; `notice` seconds before it is over the job saves and queues again (0: never).
        `ray`: Ray starts the workers inside the allocation, and replaces those that are lost. `torchrun`: torchrun
        starts them."""

        nodes: Positive = 1
        time: Time = "01:00:00"
        partition: Word | None = None
        account: Word | None = None
        qos: Word | None = None
        constraint: Word | None = None
        notice: Count = 120
        ray: bool = False
        torchrun: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be submitted. Raises JobError for a mistake in the job."""
        job, nodes = request.job, self.config.nodes
        ray, torchrun = self.config.ray, self.config.torchrun
        if ray and torchrun:
            raise JobError("cluster.launcher.torchrun: is true, and so is ray; allowed: one of them")
        if (ray or torchrun) and job.cluster.transport == "mpi":
            who = "Ray's (cluster.launcher.ray)" if ray else "torchrun's (cluster.launcher.torchrun)"
            raise JobError(f"cluster.transport: mpi needs ranks that srun has started, not {who}")
        # Workers of a node, where their number is the same on all.
        each = places(job, nodes) if ray else request.per_node(nodes, "cluster.launcher.nodes")
        sbatch = request.program("sbatch", "submit from a machine of the cluster")
        path = f"{request.folder}/slurm.sbatch"
        if not re.fullmatch(r"[\w/.,:@+-]+", request.folder):
            raise JobError(
                f"log.folder: Slurm's scripts take no such folder: {request.folder!r}; use letters, digits, -_."
            )
        cpus, gpus = job.cluster.cpus_per_worker, job.cluster.gpus_per_worker
        tasks, share = (1, each) if ray or torchrun else (each, 1)  # of a node, and workers of a task
        lines = self.directives(job.name, f"{request.folder}/%j.out", tasks, share * cpus, share * gpus)
        if torchrun:
            program = request.program("torchrun", "it comes with torch")
            text = script(lines, torchruns(program, str(each), shlex.quote(request.path)), notes=TORCHRUNS)
        else:
            words = [request.python, *(("-m", "sparsetrain", "node") if ray else MODULE), request.path]
            text = script(lines, shlex.join(words), notes=AGENTS if ray else RANKS)
        return request.plan("slurm", nodes, (sbatch, "--parsable", path), (File(path=path, text=text),))

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


def script(directives: list[str], worker: str, comment: str = "", notes: str = RANKS) -> str:
    """Return a batch script that runs `worker` in every task, after `notes`, which are of one with that kind of it."""
    lines = "\n".join(f"#SBATCH {line}" for line in directives)
    return SCRIPT.format(comment=comment, directives=lines, notes=notes, worker=worker)


def torchruns(program: str, each: str, job: str) -> str:
    """Return the words of the shell that let torchrun start `each` ranks in a task, with `job` for their arguments."""
    return f"sh -c {shlex.quote(INNER.format(program=shlex.quote(program), each=each))} sh {job}"
