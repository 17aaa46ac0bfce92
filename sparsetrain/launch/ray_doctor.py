"""The examination of a Ray cluster: one actor on each node does what a rank would do there."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import parse, to_tree
from sparsetrain.doctor.ranks import conclude, examine_as_rank, example
from sparsetrain.launch.ray_cluster import connected
from sparsetrain.launch.ray_group import forwarded, own_node
from sparsetrain.worker.environment import Place, launcher

LIMIT_S = 600.0  # for a whole examination; each of its steps has a limit of its own


class Examiner:
    """A process that Ray has started on one node for the examination."""

    def __init__(self, variables: dict[str, str], paths: list[str]) -> None:
        os.environ.update(variables)
        sys.path.extend(path for path in paths if path not in sys.path)
        self.listener: socket.socket | None = None

    def where(self) -> dict[str, str]:
        """Return the address and the host name of this node."""
        import ray

        return {"address": str(ray.util.get_node_ip_address()), "host": socket.gethostname()}

    def hold_port(self, address: str) -> int:
        """Return a port of this node's `address` that stays this process's own until the ranks meet there."""
        self.listener = socket.create_server((address, 0))
        return int(self.listener.getsockname()[1])

    def examine(self, tree: dict[str, Any], place: Place) -> Any:
        """Take part as the rank `place.rank` and return the Findings, or a line that says why there are none."""
        from sparsetrain.doctor.board import Absent
        from sparsetrain.doctor.examination import examine

        try:
            return examine(parse(tree), place, "ray", os.environ, self.listener)
        except (Absent, JobError) as error:
            return str(error)


def examine_cluster(words: Sequence[str], as_json: bool) -> int:
    """Examine the cluster of the job that `words` name: as one of the ranks of a launcher, or Ray's at its address.
    Return the exit code. Raises JobError where there is neither."""
    job = example(words)
    if launcher(os.environ) != "process" or not job.cluster.address:
        return examine_as_rank(job, as_json)
    with connected(job.cluster.address):
        found, lines = _examine(job)
    if isinstance(found, str):
        print("\n".join([found, *lines]), file=sys.stderr)
        return 1
    found.silent += lines
    return conclude(job, found, as_json)


def _examine(job: Job) -> tuple[Any, list[str]]:
    """Return rank 0's findings, or why there are none, and what the other ranks could not do."""
    import ray

    here, actors, lines = own_node(), [], []
    for node in sorted(ray.nodes(), key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"])):
        if not node["Alive"]:
            lines.append(f"{node['NodeName']} ({node['NodeManagerAddress']}): this node of Ray's is dead")
            continue
        actors.append((node["NodeName"], _actor(node["NodeID"])))
    limit = job.cluster.start_timeout
    up: list[tuple[Any, dict[str, str]]] = []
    calls = [actor.where.remote() for _, actor in actors]
    ray.wait(calls, num_returns=len(calls), timeout=limit)
    for (name, actor), call in zip(actors, calls, strict=True):
        try:
            up.append((actor, ray.get(call, timeout=0.1)))
        except ray.exceptions.RayError as error:
            lines.append(f"{name}: no process of ours comes up there in {limit:g} s: {str(error).strip()[:300]}")
    if not up:
        return "ray: no node has come up", lines
    port = ray.get(up[0][0].hold_port.remote(up[0][1]["address"]), timeout=limit)
    answers = []
    for rank, (actor, where) in enumerate(up):
        place = Place(rank=rank, size=len(up), node=where["host"], master_addr=up[0][1]["address"], master_port=port)
        answers.append(actor.examine.remote(to_tree(job), place))
    found = ray.get(answers[0], timeout=LIMIT_S)
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=1)
    lines += [said for said in ray.get(ready) if isinstance(said, str) and said != found]
    return found, lines


def _actor(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node, soft=False)
    options = ray.remote(Examiner).options(num_cpus=0, scheduling_strategy=place)
    return options.remote(forwarded(dict(os.environ)), [os.path.abspath(path) for path in sys.path])
