"""mpiexec, without Ray: MPICH's or Open MPI's."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Mapping

from sparsetrain.config.errors import JobError
from sparsetrain.launch.launchers.hosts import Host, refuse_unknown
from sparsetrain.launch.launchers.request import MODULE, Request
from sparsetrain.launch.plan import File, LaunchPlan
from sparsetrain.worker import interface

# Open MPI hands on to other hosts what it is told to, by name: what is behind a name is on no command line.
HANDED = ("GLOO_", "HF_", "NCCL_", "OMP_", "PYTHONPATH", "SPARSETRAIN_", "WANDB_")
ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
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
        refuse_unknown(hosts, "cluster.launcher.hosts", request)
        open_mpi = flavour(program) == "Open MPI"
        if open_mpi and os.geteuid() == 0 and not all(request.env.get(key) == "1" for key in ROOT):
            raise JobError(
                f"cluster.launcher: Open MPI does not run as root; where that is meant, in a container say, {ROOT[0]}=1"
                f" {ROOT[1]}=1 in the environment lets it"
            )
        # It would bind each rank to one core, all its threads with it.
        options, files = ["--bind-to", "none"] if open_mpi else [], []
        if job.cluster.interface and not hosts:
            self._here(request)
        options += _over(job.cluster.interface, open_mpi)
        if hosts:
            path = f"{request.folder}/hosts"
            line = "{} slots={}\n" if open_mpi else "{}:{}\n"
            files.append(File(path=path, text="".join(line.format(host, each) for host in hosts)))
            options += ["--hostfile" if open_mpi else "-f", path]
            options += [word for name in _handed(request.env) if open_mpi for word in ("-x", name)]
        elif open_mpi:
            options += ["--oversubscribe"]
        count = str(job.cluster.workers.max)
        command = (program, *options, "-n", count, request.python, *MODULE, request.path)
        return request.plan("mpi", max(1, len(hosts)), command, tuple(files))

    def _here(self, request: Request) -> None:
        """Raise JobError where ranks of this machine shall meet over an interface that it does not have."""
        try:
            interface.choose("127.0.0.1", request.job.cluster.interface, interface.interfaces())
        except JobError as error:
            request.doubt(str(error))


def flavour(program: str) -> str:
    """Return whose mpiexec this is: "Open MPI", or "MPICH" for all that take its options."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"cluster.launcher: {program} does not answer: {error}") from None
    return "Open MPI" if re.search(r"open.?(mpi|rte)", done.stdout + done.stderr, re.IGNORECASE) else "MPICH"


def _over(name: str | None, open_mpi: bool) -> list[str]:
    """Return the options that keep MPI's own messages, and those of its daemons, on a network interface."""
    if name is None:
        return []
    if open_mpi:
        return ["--mca", "btl_tcp_if_include", name, "--mca", "oob_tcp_if_include", name]
    return ["-iface", name, "-genv", "FI_TCP_IFACE", name]


def _handed(env: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that ranks on other hosts need; launch sets OMP_NUM_THREADS."""
    return sorted({"OMP_NUM_THREADS", *(name for name in env if name.startswith(HANDED))})
