"""torchrun, without Ray: on this machine, or the same command on each of several."""

from __future__ import annotations

import dataclasses
import re
import socket
from typing import Annotated

from pydantic import Field

from sparsetrain.config.errors import JobError
from sparsetrain.config.numbers import Positive
from sparsetrain.launch.launchers.request import MODULE, Request
from sparsetrain.launch.plan import LaunchPlan

Endpoint = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]:-]+:[0-9]{1,5}$")]


class Torchrun:
    """Ranks under torchrun; with several nodes the command is to be given on each of them."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`endpoint`: HOST:PORT of one of the nodes, needed for more than one."""

        nodes: Positive = 1
        endpoint: Endpoint | None = None

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be started. Raises JobError for a mistake in the job."""
        nodes, endpoint = self.config.nodes, self.config.endpoint
        each = str(request.per_node(nodes, "cluster.launcher.nodes"))
        program = request.program("torchrun", "it comes with torch")
        if nodes == 1:
            where = ["--standalone"]
        elif endpoint is None:
            raise JobError("cluster.launcher.endpoint: give HOST:PORT of one of the nodes (more than one is wanted)")
        else:
            _resolved(endpoint, request)
            where = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-id", request.job.name]
            where += ["--rdzv-endpoint", endpoint]
        return request.plan("torchrun", nodes, (program, *where, "--nproc-per-node", each, *MODULE, request.path))


def _resolved(endpoint: str, request: Request) -> None:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.getaddrinfo(re.sub(r"[\[\]]", "", host), int(port))
    except (OSError, OverflowError, UnicodeError) as error:
        request.doubt(f"cluster.launcher.endpoint: {endpoint}: {error}")
