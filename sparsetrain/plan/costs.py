"""What the exchange costs a processor: seconds an element and an entry, measured on this machine in some seconds.

Counted is the processor's time of this thread, so that it does not matter what else runs; caches hold something else
before each turn, as they do in a training step.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from sparsetrain.collective.entries import Entries
from sparsetrain.collective.gtopk import GTopK
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.config.component import NoOptions
from sparsetrain.kernels.combine import combine
from sparsetrain.kernels.merge import merge
from sparsetrain.kernels.select import select

SIZE = 1 << 21  # elements that are timed with: larger than a cache, quick enough to repeat
TURNS = 5
OTHER = 1 << 23  # elements that push all else out of the caches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one core. `..._element_s` are for each of the n elements of a bucket, `..._entry_s` for each of the
    entries; `call_s` is what a call costs that does nothing. `message_s` is what a message between two ranks takes
    beside the latency of the links, `more_s` each further one that leaves with it: the library's part, which does not
    become longer where cores are shared."""

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
    pair_entry_s: float = 0.0  # of gtopk's merge and second selection
    call_s: float = 0.0
    message_s: float = 0.0
    more_s: float = 0.0
    # By collective: what the parts above leave unexplained, an element of the bucket.
    rest: tuple[tuple[str, float], ...] = ()

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

    def to_all(self, ranks: int) -> float:
        """Return the library's part of a message to every other rank."""
        return self.message_s + max(0, ranks - 2) * self.more_s

    def values(self, count: float) -> float:
        return self.call_s + count * (self.encode_value_s + self.decode_value_s)

    def unexplained(self, collective: str, size: float) -> float:
        """Return the seconds of an exchange of `size` elements that no part accounts for."""
        return next((each * size for name, each in self.rest if name == collective), 0.0)

    @staticmethod
    def middle(looks: Sequence[Costs]) -> Costs:
        """Return the median of several looks at one processor, each number by itself."""
        numbers = {
            field.name: statistics.median(getattr(each, field.name) for each in looks)
            for field in dataclasses.fields(Costs)
            if field.name != "rest"
        }
        names = [name for name, _ in looks[0].rest]
        rest = tuple((name, statistics.median(dict(each.rest)[name] for each in looks)) for name in names)
        return Costs(**numbers, rest=rest)

    def scaled(self, factor: float) -> Costs:
        """Return what a processor costs that takes `factor` times as long."""
        kept = ("rest", "message_s", "more_s")
        numbers = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in kept
        }
        rest = tuple((name, factor * each) for name, each in self.rest)
        scaled = {name: factor * value for name, value in numbers.items()}
        return Costs(**scaled, message_s=self.message_s, more_s=self.more_s, rest=rest)


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
    call = processor_seconds(lambda: codec.decode(codec.encode(few, Frame(64, 0, 0)), Frame(64, 0, 0), 0), 1) / 2
    whole, like = Entries(None, noise, shared=True), Entries(None, out, shared=True)
    values = codec.encode(whole, frame)
    empty = processor_seconds(lambda: merge([], out, 1.0))
    both = (chosen.indices, chosen.values), (other.indices, other.values)
    pair = (Entries(chosen.indices, chosen.values, asked=k), Entries(other.indices, other.values, asked=k))
    again = GTopK(NoOptions())
    matrix, thin = noise.view(-1, 512), torch.randn(512, 4, generator=draw)
    return Costs(
        select_element_s=processor_seconds(lambda: select(old, buffer, k)) / SIZE,
        encode_entry_s=max(0.0, processor_seconds(lambda: codec.encode(entries, frame)) - call) / k,
        decode_entry_s=max(0.0, processor_seconds(lambda: codec.decode(message, frame, 0)) - call) / k,
        encode_value_s=processor_seconds(lambda: codec.encode(whole, frame)) / SIZE,
        decode_value_s=processor_seconds(lambda: codec.decode(values, frame, 0, like)) / SIZE,
        merge_element_s=empty / SIZE,
        merge_entry_s=max(0.0, processor_seconds(lambda: merge(both, out, 0.5)) - empty) / (2 * k),
        combine_entry_s=processor_seconds(lambda: combine(*both)) / (2 * k),
        pair_entry_s=processor_seconds(lambda: again.merged(*pair, frame, codec)) / (2 * k),
        pass_element_s=processor_seconds(lambda: torch.add(old, noise, out=out)) / SIZE,
        # Two products with a thin matrix to make the factors, one to put them together, twice orthogonal.
        factor_element_s=4 * processor_seconds(lambda: torch.mm(matrix, thin)) / (SIZE * thin.shape[1]),
        call_s=call,
        message_s=call / 2,
        more_s=call / 10,
    )


def processor_seconds(call: Callable[[], object], others: int = OTHER) -> float:
    """Return the median processor seconds of some tries, each after a pass over so many `others` in the caches."""
    other, spent = torch.ones(others), []
    call()
    for _ in range(TURNS):
        other.mul_(1.0)
        began = time.thread_time()
        call()
        spent.append(time.thread_time() - began)
    return statistics.median(spent)
