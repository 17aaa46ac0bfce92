"""Every region has an owner who sums it; the sums go to all. Volume per rank does not grow with the number of ranks.

The two phases of Ok-Topk (Li and Hoefler, PPoPP 2022) without its re-selection: nothing is dropped, so the second
phase carries the union of all ranks' places.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsetrain.collective.allgather import merge_entries
from sparsetrain.collective.collective import Collective, Load, Volume
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.regions import Regions
from sparsetrain.collective.world import World
from sparsetrain.config.numbers import Positive


class SplitReduce(Collective):
    """Owners sum their regions, then everyone gathers the sums: (k + union) (P-1)/P entries, 2 P + 2 log2 P latencies.

    The owner sums in rank order and all ranks decode the same message, so all hold the same bits.
    """

    support = "own"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`rebalance`: exchanges between two looks at where the entries lie."""

        rebalance: Positive = 8

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.regions = Regions(config.rebalance)
        self.ranks = 0

    def exchange(self, entries: Entries, frame: Frame, codec: Codec, world: World, out: Tensor) -> Outcome:
        """See Collective. Entries must not be shared: there is nothing to gain then."""
        assert entries.indices is not None
        self.ranks = world.size
        indices, values = entries.indices.cpu(), entries.values.cpu()
        edges = self.regions.of(frame.bucket, indices, frame.size, world)
        mine, sent, finite = _to_owners(Entries(indices, values, finite=entries.finite), edges, frame, codec, world)
        if not finite:
            return Outcome(finite=False)
        start, end = edges[world.rank], edges[world.rank + 1]
        region = torch.empty(end - start)
        merge_entries(mine, region, 1.0)
        places = union([part.indices for part in mine if part.indices is not None], end - start)
        places = self.kept(places, region, entries.asked, frame, world)
        total = Entries(places, region[places.long()])
        owned = Frame(end - start, frame.epoch, frame.bucket, world.rank)
        answer = codec.encode(total, owned).to(world.transport.device)
        answers = world.transport.all_gather_v(answer, "gradient")
        sums = [_from_owner(each, edges, rank, frame, codec) for rank, each in enumerate(answers)]
        self.learned(frame.bucket, entries.asked, sum(len(each) for each in sums))
        merge_entries(sums, out, 1.0 / world.size)
        rounding = (places + start, total.values - sums[world.rank].values)
        arrived = self.arrived(indices, sums, frame.size)
        left = values - sent if arrived is None else torch.where(arrived, values - sent, values)
        parts = tuple(Entries(at.to(out.device), rest.to(out.device)) for at, rest in ((indices, left), rounding))
        return Outcome(parts, arrived, distinct=sum(len(each) for each in sums))

    def kept(self, places: Tensor, region: Tensor, asked: int, frame: Frame, world: World) -> Tensor:
        """Return which of its places the owner passes on: here all."""
        return places

    def learned(self, bucket: int, asked: int, realised: int) -> None:
        """Take note of how many entries were passed on by all owners together."""

    def arrived(self, indices: Tensor, sums: list[Entries], size: int) -> Tensor | None:
        """Return which of this rank's entries are among the sums, None for all."""
        return None

    def volume(self, load: Load) -> Volume:
        """Return (k + union of random places) (P-1)/P entries and 2 P + 2 log2 P latencies."""
        merged = load.size * (1 - (1 - load.count / load.size) ** load.ranks)
        share = (load.ranks - 1) / load.ranks
        return Volume((load.count + merged) * load.entry_bytes * share, latencies(load.ranks))

    def state(self) -> dict[str, Tensor]:
        """See Collective."""
        return self.regions.state()

    def load_state(self, state: dict[str, Tensor], ranks: int) -> None:
        """See Collective."""
        self.regions.load_state(state, ranks)

    def forget(self) -> None:
        """See Collective."""
        self.regions.forget()


def latencies(ranks: int) -> float:
    """Return 2 P + 2 log2 P: two rounds of messages to all, with their lengths."""
    return 2 * ranks + 2 * math.log2(max(2, ranks))


def union(lists: list[Tensor], size: int) -> Tensor:
    """Return the ascending places (int32) that are in any of the lists."""
    flags = np.zeros(size, dtype=bool)
    for each in lists:
        flags[each.numpy()] = True
    return torch.from_numpy(np.flatnonzero(flags).astype(np.int32))


def _to_owners(
    entries: Entries, edges: list[int], frame: Frame, codec: Codec, world: World
) -> tuple[list[Entries], Tensor, bool]:
    """Send every owner its part. Return all ranks' parts of the own region, this rank's values as the owners read
    them, and whether all was finite."""
    assert entries.indices is not None
    cuts = torch.searchsorted(entries.indices, torch.tensor(edges, dtype=torch.int32)).tolist()
    messages, sent = [], []
    for owner in range(world.size):
        low, high = cuts[owner], cuts[owner + 1]
        part = Entries(entries.indices[low:high] - edges[owner], entries.values[low:high], finite=entries.finite)
        size = edges[owner + 1] - edges[owner]
        messages.append(codec.encode(part, Frame(size, frame.epoch, frame.bucket, owner)).to(world.transport.device))
        sent.append(codec.values.decode(codec.values.encode(part.values), len(part)))
    own = Frame(edges[world.rank + 1] - edges[world.rank], frame.epoch, frame.bucket, world.rank)
    arrived = world.transport.all_to_all_v(messages, "gradient")
    mine = [codec.decode(each, own, source) for source, each in enumerate(arrived)]
    return mine, torch.cat(sent), all(part.finite for part in mine)


def _from_owner(message: Tensor, edges: list[int], owner: int, frame: Frame, codec: Codec) -> Entries:
    size = edges[owner + 1] - edges[owner]
    part = codec.decode(message, Frame(size, frame.epoch, frame.bucket, owner), owner)
    assert part.indices is not None
    return Entries(part.indices + edges[owner], part.values)
