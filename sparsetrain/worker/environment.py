"""Which rank this process is, read from its launcher: a value, never a global."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping

from sparsetrain.config.errors import JobError

TORCHRUN_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Rank of size, the rank inside its node, the node's name, and where rank 0 can be met.

    `generation` names the group: a rank of an earlier one, cut off and back, must not write what a later one writes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node: str = "localhost"
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    generation: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise JobError(f"RANK: must be at least 0 and less than WORLD_SIZE ({self.size}) (given {self.rank})")
        if not 0 <= self.local_rank < self.size:
            raise JobError(f"LOCAL_RANK: must be at least 0 and less than WORLD_SIZE (given {self.local_rank})")
        if self.size > 1 and not 0 < self.master_port < 65536:
            raise JobError(f"MASTER_PORT: must be a port from 1 to 65535 (given {self.master_port})")

    def variables(self) -> dict[str, str]:
        """Return the environment that libraries expect of this rank (LOCAL_RANK is needed by DeepSpeed)."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def from_environment(env: Mapping[str, str]) -> Place:
    """Return the place that torchrun describes, or that of a single process when there is no launcher."""
    return from_torchrun(env) if "RANK" in env or "WORLD_SIZE" in env else Place(node=socket.gethostname())


def from_torchrun(env: Mapping[str, str]) -> Place:
    """Return the place that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe.

    Raises JobError that names the variable which is missing or not a number.
    """
    missing = [key for key in TORCHRUN_KEYS if not env.get(key)]
    if missing:
        given = ", ".join(key for key in TORCHRUN_KEYS if env.get(key)) or "none"
        raise JobError(
            f"{missing[0]}: not set in the environment; torchrun sets all of {given} and {', '.join(missing)}"
        )
    return Place(
        rank=_number(env, "RANK"),
        size=_number(env, "WORLD_SIZE"),
        local_rank=_number(env, "LOCAL_RANK"),
        node=socket.gethostname(),
        master_addr=env["MASTER_ADDR"],
        master_port=_number(env, "MASTER_PORT"),
    )


def _number(env: Mapping[str, str], key: str) -> int:
    try:
        return int(env[key])
    except ValueError:
        raise JobError(f"{key}: must be a whole number (given {env[key]!r})") from None
