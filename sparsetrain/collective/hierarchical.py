"""Two levels: gradients are added up inside a node, and only its sum is sparse on the network.

Inside a group of ranks each owns a part of the bucket and gets the group's sum of it; it selects there, exchanges what
it has selected with the owners of the same part in the other groups, and hands all of that to its own group. So a node
sends the k entries of its sum, and not the k of each of its ranks, whose union grows with them.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from sparsetrain.collective.allgather import merge_entries
from sparsetrain.collective.collective import Collective, Load, Volume
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.payload import Codec, Frame, length_of, longest
from sparsetrain.collective.some import send, send_v
from sparsetrain.collective.world import World
from sparsetrain.config.numbers import Count

FP32 = 4


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a rank stands: all groups, its own group's number and its own in that; `generation` of the world."""

    groups: tuple[tuple[int, ...], ...]
    group: int
    number: int
    generation: str

    @property
    def shards(self) -> int:
        """Return into how many parts a bucket is cut: as many as the smallest group can own."""
        return min(map(len, self.groups))

    @property
    def mates(self) -> tuple[int, ...]:
        """Return the ranks of the own group."""
        return self.groups[self.group]

    def edges(self, shard: int, size: int) -> tuple[int, int]:
        """Return where a part begins and ends; nothing for a number that owns none."""
        if shard >= self.shards:
            return size, size
        return shard * size // self.shards, (shard + 1) * size // self.shards

    def owners(self, shard: int) -> list[int]:
        """Return the ranks that own a part, one of each group."""
        return [group[shard] for group in self.groups]


class Hierarchical(Collective):
    """Sum inside a node, k entries of that between nodes: k/L (N-1) entries for N nodes of L ranks, 2 log2 N latencies.

    Beside them 4 n (L-1)/L bytes and what all nodes have sent pass inside the node.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`group`: how many ranks that follow one another make a group, a site for instance; 0: those of a node."""

        group: Count = 0

    support = "own"
    shards = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.groups = 0  # that there are, once it is known
        self._places: dict[int, Place] = {}  # by bucket: each has a thread

    def place(self, bucket: int, world: World) -> Place:
        """Return where this rank stands. Collective at the first call for a bucket."""
        known = self._places.get(bucket)
        if known is None or known.generation != world.generation or sum(map(len, known.groups)) != world.size:
            known = self._places[bucket] = _place(self.config.group, world)
            self.groups = len(known.groups)
        return known

    def add_up(self, tensor: Tensor, bucket: int, world: World) -> None:
        """Make the own part of `tensor` (fp32 [n]) the sum over the group, in rank order, and the rest zero.
        Collective."""
        place = self.place(bucket, world)
        size, mates, own = tensor.numel(), place.mates, place.edges(place.number, tensor.numel())
        owners = mates[: place.shards]
        parts = {owner: tensor[slice(*place.edges(shard, size))] for shard, owner in enumerate(owners)}
        arrived = send(parts, dict.fromkeys(mates, own[1] - own[0]), world.transport)
        arrived[world.rank] = tensor[slice(*own)]
        total = arrived[mates[0]].clone()
        for mate in mates[1:]:
            total.add_(arrived[mate])
        tensor.zero_()
        tensor[slice(*own)] = total

    def exchange(self, entries: Entries, frame: Frame, codec: Codec, world: World, out: Tensor) -> Outcome:
        """See Collective. The entries lie in the own part; nothing is lost but the rounding of the values."""
        assert entries.indices is not None
        place, transport = self.place(frame.bucket, world), world.transport
        own, owns = place.edges(place.number, frame.size), place.number < place.shards
        messages: dict[int, Tensor] = {}
        if owns:
            local = dataclasses.replace(entries, indices=entries.indices - own[0])
            messages[world.rank] = codec.encode(local, _part(frame, place, place.number)).to(transport.device)
        peers = [rank for rank in (place.owners(place.number) if owns else []) if rank != world.rank]
        parts = {peer: messages[world.rank] for peer in peers}
        if codec.fixed and entries.even:
            messages |= send(parts, {peer: messages[world.rank].numel() for peer in peers}, transport)
        else:
            messages |= send_v(parts, peers, longest(frame.size), transport)
        finite, leftover = True, ()
        for shard, blob in enumerate(self._handed_round(messages, frame, place, world)):
            low, high = place.edges(shard, frame.size)
            received = _read(blob, place.owners(shard), _part(frame, place, shard), codec)
            finite = finite and all(each.finite for each in received.values())
            if world.rank in received:
                lost = entries.values - received[world.rank].values.to(entries.values.device)
                leftover = (Entries(entries.indices, lost),)
            if finite:
                merge_entries(list(received.values()), out[low:high], 1.0 / world.size)
        return Outcome(leftover) if finite else Outcome(finite=False)

    def _handed_round(self, messages: dict[int, Tensor], frame: Frame, place: Place, world: World) -> list[Tensor]:
        """Return for each part the messages of all its owners, one behind the other. Collective."""
        mine = torch.cat([messages[rank] for rank in sorted(messages)]) if messages else None
        parts = {} if mine is None else {mate: mine for mate in place.mates if mate != world.rank}
        owners = place.mates[: place.shards]
        others = [owner for owner in owners if owner != world.rank]
        most = len(place.groups) * longest(frame.size)
        arrived = send_v(parts, others, most, world.transport)
        if mine is not None:
            arrived[world.rank] = mine
        return [arrived[owner] for owner in owners]

    def volume(self, load: Load) -> Volume:
        """Return k/L (N-1) entries and 2 log2 N latencies; near: 4 n (L-1)/L bytes and (L-1) k/L N entries. Until the
        groups are known, every rank counts as one."""
        groups = -(-load.ranks // self.config.group) if self.config.group else self.groups or load.ranks
        mates = load.ranks / groups
        part = load.count / mates * load.entry_bytes
        near = FP32 * load.size * (mates - 1) / mates + (mates - 1) * part * groups
        return Volume(part * (groups - 1), 2 * math.ceil(math.log2(groups)) if groups > 1 else 0, near)

    def forget(self) -> None:
        """See Collective: nothing here depends on coordinates."""


def _place(group: int, world: World) -> Place:
    nodes = world.transport.gather_bytes(world.node.encode())
    names = [rank // group for rank in range(world.size)] if group else nodes
    groups = tuple(tuple(r for r, name in enumerate(names) if name == each) for each in dict.fromkeys(names))
    number = next(n for n, ranks in enumerate(groups) if world.rank in ranks)
    return Place(groups, number, groups[number].index(world.rank), world.generation)


def _part(frame: Frame, place: Place, shard: int) -> Frame:
    low, high = place.edges(shard, frame.size)
    return Frame(high - low, frame.epoch, frame.bucket, shard)


def _read(blob: Tensor, owners: list[int], frame: Frame, codec: Codec) -> dict[int, Entries]:
    """Return the entries of a part's owners by rank, ascending, from their messages one behind the other."""
    received = {}
    for owner in sorted(owners):
        length = length_of(blob, frame, owner)
        received[owner] = codec.decode(blob[:length], frame, owner)
        blob = blob[length:]
    return received
