"""Recursive doubling on sparse streams, dense once they have filled in (SparCML; Renggli et al., SC 2019)."""

from __future__ import annotations

import dataclasses

import torch

from sparsetrain.collective.butterfly import Butterfly, added, depth_of, largest_power
from sparsetrain.collective.collective import Load, Volume
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.config.component import NoOptions


class RecursiveDoubling(Butterfly):
    """Merge in pairs and keep everything: log2 P rounds of growing unions, whole buckets from where those are shorter.

    SparCML's SSAR_Recursive_double. Its switch is at n / 2 for an index of four bytes and a value of four; here it is
    where the job's codes need as many bytes for the places as they save in values.
    """

    Config = NoOptions

    def merged(self, low: Entries, high: Entries, frame: Frame, codec: Codec) -> tuple[Entries, Entries | None]:
        """See Butterfly: nothing is dropped."""
        total = added(low, high)
        if total.indices is None:
            return total, None
        if codec.bytes(len(total), frame.size) < codec.bytes(frame.size, frame.size, shared=True):
            return total, None
        whole = torch.zeros(frame.size)
        whole[total.indices.long()] = total.values
        return dataclasses.replace(total, indices=None, values=whole, shared=True), None

    def volume(self, load: Load) -> Volume:
        """Return the unions of random places of 1, 2, 4 ... ranks, at most whole buckets, and twice log2 P latencies:
        partners tell each other the lengths."""
        whole = largest_power(load.ranks)
        sets = [
            load.ranks / whole * (1 << j) for j in range(whole.bit_length() - 1)
        ]  # ranks in what travels, on average
        sent = whole * sum(_bytes(load, ranks) for ranks in sets)
        sent += (load.ranks - whole) * (_bytes(load, 1) + _bytes(load, load.ranks))
        return Volume(sent / load.ranks, 2 * depth_of(load.ranks))


def _bytes(load: Load, ranks: float) -> float:
    union = load.size * (1 - (1 - load.count / load.size) ** ranks)
    return min(union * load.entry_bytes, load.size * load.value_bytes)
