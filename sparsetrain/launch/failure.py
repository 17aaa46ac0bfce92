"""Why a run failed: of all ranks that raised or died, the one that began it."""

from __future__ import annotations

import dataclasses
from typing import Literal

# What neighbours of a lost rank raise: a consequence, not a cause.
ECHOES = (
    "PeerLost",
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Timed out waiting",
    "NCCL",
    "DistBackendError",
    "DistNetworkError",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """One rank's end. `kind`: "job" is a user's mistake, "error" an exception, "died" a process that is gone."""

    rank: int
    host: str
    node: str
    pid: int
    kind: Literal["job", "error", "died"]
    message: str
    type: str = ""
    traceback: str = ""
    at: float = 0.0  # seconds since the epoch, by the host's clock

    def line(self) -> str:
        """Return the failure in one line: rank, host, node and cause."""
        what = f"{self.type}: {self.message}" if self.type else self.message
        first = what.strip().split("\n")[0]
        return f"rank {self.rank} on {self.host} (node {self.node[:12]}, process {self.pid}) failed: {first}"

    @property
    def echo(self) -> bool:
        """Whether this looks like the consequence of another rank's end."""
        return self.kind == "error" and any(text in f"{self.type}: {self.message}" for text in ECHOES)


class RunFailed(Exception):
    """A run that has ended without a result because a rank failed."""

    def __init__(self, failure: Failure, why: str = "") -> None:
        super().__init__(why or failure.line())
        self.failure = failure


def root_cause(failures: list[Failure]) -> Failure:
    """Return the failure that explains the others: a lost process, then an own exception, then an echo."""
    order = {"died": 0, "job": 1, "error": 1}
    return min(failures, key=lambda failure: (failure.echo, order[failure.kind], failure.at, failure.rank))


def account(failures: list[Failure]) -> str:
    """Return the root cause in one line, and beside it the other ranks that died."""
    cause = root_cause(failures)
    others = sorted((f.rank, f.host) for f in failures if f.kind == "died" and f.rank != cause.rank)
    also = ", ".join(f"rank {rank} on {host}" for rank, host in others)
    return f"{cause.line()}; also lost: {also}" if also else cause.line()
