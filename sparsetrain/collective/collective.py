"""What every collective does: many ranks' entries in, their mean on all ranks out, the rest handed back."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

from torch import Tensor

from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.world import World


@dataclasses.dataclass(frozen=True)
class Load:
    """What there is to exchange: `count` of `size` entries on each of `ranks` ranks.

    `entry_bytes` is one place with its value as encoded, `value_bytes` a value alone.
    """

    ranks: int
    size: int
    count: int
    entry_bytes: float
    value_bytes: float


@dataclasses.dataclass(frozen=True)
class Volume:
    """What one rank puts on the wire, and how many latencies of the network it waits for; `near` are bytes that stay
    inside its node, beside the others."""

    bytes: float
    messages: float
    near: float = 0.0


class Collective(abc.ABC):
    """One instance per exchange; state that steers the next call is kept per bucket and goes into checkpoints."""

    # Which entries it takes: any, ranks' own, those whose places all ranks share, or whole buckets only.
    support: Literal["any", "own", "shared", "all"] = "any"
    # Whether ranks first add up their gradients in groups, so that each selects in a part of the bucket only.
    shards = False

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    @abc.abstractmethod
    def exchange(self, entries: Entries, frame: Frame, codec: Codec, world: World, out: Tensor) -> Outcome:
        """Write the mean over ranks of all entries into `out` (fp32 [frame.size]), the same bits on all ranks.

        All ranks must call it, in the same order. Raises CorruptPayload when a message is not what it should be;
        nothing has been scattered from that message then.
        """

    @abc.abstractmethod
    def volume(self, load: Load) -> Volume:
        """Return the expected volume of one call, from its formula."""

    def state(self) -> dict[str, Tensor]:
        """Return what steers the next call, the same on all ranks, by `bucket/field`."""
        return {}

    def load_state(self, state: dict[str, Tensor], ranks: int) -> None:
        """Put back what `state` returned; what does not fit this world is left out."""
        return

    def forget(self) -> None:
        """Drop what was learned about the buckets: their coordinates have changed."""
        return
