"""The run on Ray: hold the places for its workers, let a supervisor train there, and bring the folder back."""

from __future__ import annotations

import pathlib
from typing import Any

from sparsetrain.config.job import Job
from sparsetrain.launch.ray_cluster import ray_cluster
from sparsetrain.launch.ray_group import Member, RayGroup, own_node, ray_group
from sparsetrain.launch.supervisor import Progress, Supervisor


def run_on_ray(job: Job, folder: pathlib.Path, progress: Progress) -> dict[str, Any]:
    """Run the job on Ray and return rank 0's result; `folder` is absolute and holds job.yaml.

    Raises RunFailed when a rank raised, or more died than the job allows, JobError for a user's mistake. All actors are
    gone afterwards, and of an own cluster every process.
    """
    with ray_cluster(job.cluster, job.recovery.spares):
        return run_there(job, folder, progress)


def run_there(job: Job, folder: pathlib.Path, progress: Progress) -> dict[str, Any]:
    """Do the same on the cluster that this process is connected to."""
    with ray_group(job, folder, progress.check) as group:
        here = own_node()
        supervisor = Supervisor(job, folder, group, progress, lambda members: ranked(members, here))
        result = supervisor.run()
        first = supervisor.members[0]
        if not first.shared:
            progress.line(f"{first.host} does not see {folder}: the folder is copied back, without checkpoints")
            copy_back(first, group, folder)
        return result


def ranked(members: list[Member], own_node: str) -> list[Member]:
    """Return the members in rank order: this node first, then node by node, so that local ranks are contiguous; on a
    node those that had a rank before come first, in their order."""

    def place(m: Member) -> tuple[bool, str, str, bool, int]:
        return m.node != own_node, m.address, m.node, m.was is None, m.pid if m.was is None else m.was

    ordered = sorted(members, key=place)
    seen: dict[str, int] = {}
    for rank, member in enumerate(ordered):
        member.rank = rank
        member.local_rank = seen.get(member.node, 0)
        seen[member.node] = member.local_rank + 1
    return ordered


def copy_back(first: Member, group: RayGroup, folder: pathlib.Path) -> None:
    """Write the files of rank 0's folder here; what is here already is replaced."""
    for name, data in group.files(first).items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"a worker named a file outside the run folder: {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
