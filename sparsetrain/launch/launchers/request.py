"""What a launcher is asked for, and the checks that several of them share."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.launch.plan import File, LaunchPlan, relevant

MODULE = ("-m", "sparsetrain.worker")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Start `job`, whose file is at `path` for every rank; files of the launcher go to `folder`. `env`: the
    environment in which programs are looked for. `python`: the interpreter of all ranks, at this path on all nodes.
    `dry`: nothing will be started, so that a program may be missing. `wait`: the job will be followed to its end."""

    job: Job
    path: str
    folder: str
    env: Mapping[str, str]
    python: str = dataclasses.field(default_factory=lambda: sys.executable)
    dry: bool = False
    wait: bool = False

    def per_node(self, nodes: int, field: str) -> int:
        """Return the workers of a node. Raises JobError where they are not the same on all, for the field `field`."""
        workers = self.job.cluster.workers
        if workers.varies:
            name = self.job.cluster.launcher.name
            how = " (allowed with cluster.launcher.ray=true)" if name == "slurm" else ""
            raise JobError(
                f"cluster.workers: {workers.min} to {workers.max} is for Ray; {name} starts a fixed number{how}"
            )
        if workers.max % nodes:
            raise JobError(f"{field}: {nodes} nodes do not share cluster.workers ({workers.max}) evenly")
        return workers.max // nodes

    def plan(self, launcher: str, nodes: int, command: tuple[str, ...], files: tuple[File, ...] = ()) -> LaunchPlan:
        """Return the plan by which `command` starts all workers of the job on so many nodes."""
        job = self.job
        return LaunchPlan(
            name=job.name,
            launcher=launcher,
            nodes=nodes,
            workers=job.cluster.workers.max,
            cpus=job.cluster.cpus_per_worker,
            gpus=job.cluster.gpus_per_worker,
            environment=relevant(self.env),
            command=command,
            files=files,
            interface=job.cluster.interface,
            time_limit=job.cluster.time_limit,
        )

    def doubt(self, problem: str) -> None:
        """Raise JobError with what only shows where the job starts; a dry run, which may be elsewhere, says it."""
        if not self.dry:
            raise JobError(problem)
        print(f"warning: {problem}", file=sys.stderr)

    def program(self, name: str, advice: str) -> str:
        """Return the path of a program. Raises JobError with the advice when there is none; in a dry run, its name
        then stands for it.

        What was installed beside the interpreter comes first, as in an activated environment: the ranks import that
        torch and that MPI, and the programs of others do not know them.
        """
        places = [os.path.dirname(self.python), *filter(None, [self.env.get("PATH")])]
        found = shutil.which(name, path=os.pathsep.join(places))
        if found is None and self.dry:
            return name
        if found is None:
            raise JobError(f"cluster.launcher: {name} is not installed here; {advice}")
        return found
