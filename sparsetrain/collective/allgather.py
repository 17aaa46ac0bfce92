"""All ranks' payloads to all ranks, merged in rank order: best up to about eight ranks."""

from __future__ import annotations

import math

from torch import Tensor

from sparsetrain.collective.collective import Collective, Load, Volume
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.rooms import Rooms
from sparsetrain.collective.world import World
from sparsetrain.config.component import NoOptions
from sparsetrain.kernels.merge import merge


class AllGather(Collective):
    """Every rank's k entries go to every rank and are summed in rank order: k (P-1) entries sent, log2 P latencies."""

    Config = NoOptions

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self.rooms = Rooms()

    def forget(self) -> None:
        """See Collective."""
        self.rooms.forget()

    def exchange(self, entries: Entries, frame: Frame, codec: Codec, world: World, out: Tensor) -> Outcome:
        """See Collective. Nothing is lost but the rounding of the values."""
        message = codec.encode(entries, frame).to(world.transport.device)
        alike = entries.even and (codec.fixed or entries.shared)
        if alike:
            messages = world.transport.all_gather(message, "gradient")
        elif entries.even:
            messages = self.rooms.gather(message, frame, codec.bytes(len(entries), frame.size), world.transport)
        else:
            messages = world.transport.all_gather_v(message, "gradient")
        like = entries if alike else None
        received = [codec.decode(each, frame, source, like) for source, each in enumerate(messages)]
        if not all(each.finite for each in received):
            return Outcome(finite=False)
        merge_entries(received, out, 1.0 / world.size)
        own = received[world.rank].values.to(entries.values.device)
        return Outcome((Entries(entries.indices, entries.values - own),))

    def volume(self, load: Load) -> Volume:
        """Return k (P-1) entries and ceil(log2 P) latencies."""
        return Volume(load.count * load.entry_bytes * (load.ranks - 1), math.ceil(math.log2(max(2, load.ranks))))


def merge_entries(parts: list[Entries], out: Tensor, scale: float) -> None:
    """Make `out` the sum of the parts, in their order, each value multiplied by `scale` first."""
    sources = [(each.indices.to(out.device), each.values.to(out.device)) for each in parts if each.indices is not None]
    merge(sources, out, scale)
