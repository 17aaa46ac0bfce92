"""mpiexec, without Ray: MPICH's or Open MPI's."""

from __future__ import annotations

import dataclasses
import re
import subprocess

from sparsetrain.config.errors import JobError
from sparsetrain.launch.launchers.hosts import Host, refuse_unknown
from sparsetrain.launch.launchers.request import MODULE, Request
from sparsetrain.launch.plan import File, LaunchPlan, relevant

ANSWER_S = 20.0


class Mpi:
    """Ranks under mpiexec, here or on hosts that are reached by ssh."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`hosts`: their names, each taking an equal share of the workers; none: this machine."""

        hosts: tuple[Host, ...] = ()

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be started. Raises JobError for a mistake in the job."""
        hosts, job = self.config.hosts, request.job
        each = request.per_node(max(1, len(hosts)), "cluster.launcher.hosts")
        # Its options are those of the MPI that is there, so that a dry run needs it, too.
        there = dataclasses.replace(request, dry=False)
        program = there.program("mpiexec", 'pip install "sparsetrain[mpi]" brings MPICH\'s')
        refuse_unknown(hosts, "cluster.launcher.hosts")
        open_mpi = flavour(program) == "Open MPI"
        options, files = [], []
        if hosts:
            path = f"{request.folder}/hosts"
            line = "{} slots={}\n" if open_mpi else "{}:{}\n"
            files.append(File(path=path, text="".join(line.format(host, each) for host in hosts)))
            options = ["--hostfile" if open_mpi else "-f", path]
        elif open_mpi:
            options = ["--oversubscribe"]
        return LaunchPlan(
            name=job.name,
            launcher="mpi",
            nodes=max(1, len(hosts)),
            workers=job.cluster.workers.max,
            cpus=job.cluster.cpus_per_worker,
            gpus=job.cluster.gpus_per_worker,
            environment=relevant(request.env),
            command=(program, *options, "-n", str(job.cluster.workers.max), request.python, *MODULE, request.path),
            files=tuple(files),
        )


def flavour(program: str) -> str:
    """Return whose mpiexec this is: "Open MPI", or "MPICH" for all that take its options."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"cluster.launcher: {program} does not answer: {error}") from None
    return "Open MPI" if re.search(r"open.?(mpi|rte)", done.stdout + done.stderr, re.IGNORECASE) else "MPICH"
