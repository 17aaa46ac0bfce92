"""Who this process is among its peers: a value that is passed in, never a global."""

from __future__ import annotations

import dataclasses

from sparsetrain.collective.transport import Alone, Transport


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """`rank` of `size`, the rank inside its node, the node's name, and the transport that reaches the others;
    `generation` names this group of ranks where a run has several, one after another."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node: str = "localhost"
    generation: str = ""
    transport: Transport = dataclasses.field(default_factory=Alone)
