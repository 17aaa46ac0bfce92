"""gTop-k (Shi et al., ICDCS 2019): pairs of ranks merge their entries and keep the k largest sums, log2 P times."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.collective.butterfly import Butterfly, added, depth_of, rounds_of
from sparsetrain.collective.collective import Load, Volume
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.config.component import NoOptions
from sparsetrain.kernels.select import select


class GTopK(Butterfly):
    """Merge in pairs, keep the k largest sums each time: k log2 P entries, log2 P latencies; any number of ranks.

    What a merge drops stays in the residual of the lowest rank that it was merged for, so that nothing is lost: the
    published code forgets it where the place survives elsewhere. The published tree reduces to one rank and sends the
    result back, 2 log2 P rounds; pairs that both merge need half of them.
    """

    Config = NoOptions

    def merged(self, low: Entries, high: Entries, frame: Frame, codec: Codec) -> tuple[Entries, Entries | None]:
        """See Butterfly."""
        total = added(low, high)
        k = low.asked or len(low)
        assert total.indices is not None
        if len(total) <= k:
            return total, None
        at = select(None, total.values.clone(), k).indices.long()
        lost = torch.ones(len(total), dtype=torch.bool)
        lost[at] = False
        kept = dataclasses.replace(total, indices=total.indices[at], values=total.values[at])
        return kept, Entries(total.indices[lost], total.values[lost])

    def fixed(self, entries: Entries) -> bool:
        """See Butterfly: k entries merged with k others are k again."""
        return entries.even and len(entries) == entries.asked

    def arrived(self, indices: Tensor, result: Entries) -> Tensor | None:
        """Return which of this rank's entries are at places that won."""
        assert result.indices is not None
        own = indices.cpu()
        at = torch.searchsorted(result.indices, own).clamp_(max=max(0, len(result) - 1))
        return (result.indices[at] == own).to(indices.device)

    def volume(self, load: Load) -> Volume:
        """Return k log2 P entries and log2 P latencies; where P is no power of two, two rounds more for some."""
        return Volume(rounds_of(load.ranks) * load.count * load.entry_bytes, depth_of(load.ranks))
