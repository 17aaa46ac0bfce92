"""What the exchange costs a processor: seconds an element and an entry, measured on this machine in two seconds."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import torch

from sparsetrain.collective.entries import Entries
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.kernels.combine import combine
from sparsetrain.kernels.merge import merge
from sparsetrain.kernels.select import select

SIZE = 1 << 21  # elements that are timed with: larger than a cache, quick enough to repeat
TURNS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one core. `..._element_s` are for each of the n elements of a bucket, `..._entry_s` for each of the
    entries; `call_s` is what a call costs that does nothing, `message_s` what one more message does."""

    select_element_s: float = 0.0
    encode_entry_s: float = 0.0
    decode_entry_s: float = 0.0
    encode_value_s: float = 0.0
    decode_value_s: float = 0.0
    merge_element_s: float = 0.0
    merge_entry_s: float = 0.0
    combine_entry_s: float = 0.0
    pass_element_s: float = 0.0  # one pass over memory: an addition
    factor_element_s: float = 0.0  # of lowrank, an element and a rank of the factors
    call_s: float = 0.0
    message_s: float = 0.0

    def select(self, size: float) -> float:
        return self.call_s + size * self.select_element_s

    def encode(self, entries: float) -> float:
        return self.call_s + entries * self.encode_entry_s

    def decode(self, entries: float) -> float:
        return self.call_s + entries * self.decode_entry_s

    def merge(self, size: float, entries: float) -> float:
        return self.call_s + size * self.merge_element_s + entries * self.merge_entry_s

    def combine(self, entries: float) -> float:
        return self.call_s + entries * self.combine_entry_s

    def passes(self, size: float, count: float = 1.0) -> float:
        return self.call_s + count * size * self.pass_element_s

    def scaled(self, factor: float) -> Costs:
        """Return what a processor costs that takes `factor` times as long."""
        return Costs(**{field.name: factor * getattr(self, field.name) for field in dataclasses.fields(self)})


def measure(codec: Codec, density: float, threads: int = 1) -> Costs:
    """Return the costs with these codes and about this density, on `threads` cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measured(codec, density)
    finally:
        torch.set_num_threads(before)


def _measured(codec: Codec, density: float) -> Costs:
    k = min(SIZE // 2, max(1000, round(density * SIZE)))
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(SIZE, generator=draw)
    old, buffer, out = torch.zeros(SIZE), noise.clone(), torch.empty(SIZE)
    chosen = select(old, buffer, k)
    entries, frame = Entries(chosen.indices, chosen.values), Frame(SIZE, 0, 0)
    message = codec.encode(entries, frame)
    other = select(None, torch.randn(SIZE, generator=draw), k)
    few = Entries(torch.arange(8, dtype=torch.int32), torch.ones(8))
    call = _least(lambda: codec.decode(codec.encode(few, Frame(64, 0, 0)), Frame(64, 0, 0), 0)) / 2
    whole, like = Entries(None, noise, shared=True), Entries(None, out, shared=True)
    values = codec.encode(whole, frame)
    empty = _least(lambda: merge([], out, 1.0))
    both = (chosen.indices, chosen.values), (other.indices, other.values)
    matrix, thin = noise.view(-1, 512), torch.randn(512, 4, generator=draw)
    return Costs(
        select_element_s=_least(lambda: select(old, buffer, k)) / SIZE,
        encode_entry_s=max(0.0, _least(lambda: codec.encode(entries, frame)) - call) / k,
        decode_entry_s=max(0.0, _least(lambda: codec.decode(message, frame, 0)) - call) / k,
        encode_value_s=_least(lambda: codec.encode(whole, frame)) / SIZE,
        decode_value_s=_least(lambda: codec.decode(values, frame, 0, like)) / SIZE,
        merge_element_s=empty / SIZE,
        merge_entry_s=max(0.0, _least(lambda: merge(both, out, 0.5)) - empty) / (2 * k),
        combine_entry_s=_least(lambda: combine(*both)) / (2 * k),
        pass_element_s=_least(lambda: torch.add(old, noise, out=out)) / SIZE,
        # Two products with a thin matrix to make the factors, one to put them together, twice orthogonal.
        factor_element_s=4 * _least(lambda: torch.mm(matrix, thin)) / (SIZE * thin.shape[1]),
        call_s=call,
        message_s=call / 2,
    )


def _least(call: Callable[[], object]) -> float:
    """Return the shortest of some tries: whatever else runs can only add to it."""
    best = math.inf
    for _ in range(TURNS):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best
