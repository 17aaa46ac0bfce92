"""Every collective as the messages that it sends: when each rank has the mean of one bucket, over a given fabric.

A walk follows the code in collective/ message by message, with the sizes that the codec says and the work that lies
between two messages. What all ranks send to all others at once is taken together; rings are followed round by round
until nothing changes from one round to the next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from sparsetrain.collective.butterfly import largest_power
from sparsetrain.collective.payload import Codec
from sparsetrain.plan.costs import Costs
from sparsetrain.plan.fabric import Fabric, Times
from sparsetrain.plan.fill import Fill

RING = 16 * 1024  # bytes from which on payloads are passed on in a ring (torch_dist.RING)
LENGTH = 8
SLACK = 1.01  # of a room over the message that it is for (collective.rooms)
STRIDE = 16  # rounds of a ring; where two such stretches take the same, within ALIKE, all others do
ALIKE = 1e-3
WORD = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One bucket: `size` coordinates in the update set of `whole`, `count` of them sent; `group` ranks share a node;
    `factor` elements of lowrank's two factors, of `rank` columns."""

    size: int
    count: int
    codec: Codec
    costs: Costs
    fill: Fill
    group: int = 1
    whole: int = 0
    factor: tuple[int, int] = (0, 0)
    rank: int = 0

    def message(self, entries: float, size: float | None = None) -> float:
        """Return the bytes of so many entries among `size` places."""
        places = max(1, round(self.size if size is None else size))
        return self.codec.bytes(min(places, max(1, round(entries))), places)

    def values(self, count: float) -> float:
        """Return the bytes of values without places."""
        return self.codec.bytes(max(1, round(count)), max(1, round(count)), shared=True)

    def union(self, ranks: float) -> float:
        """Return how many places so many ranks have chosen together."""
        return self.size * self.fill.union(ranks, self.count / self.size)


Walk = Callable[[Fabric, Times, Work], Times]


def allgather(fabric: Fabric, at: Times, work: Work) -> Times:
    """Every rank's message to every rank."""
    costs, ranks = work.costs, fabric.ranks
    size = work.message(work.count) * (1.0 if work.codec.fixed else SLACK)
    at = gather(fabric, at + costs.encode(work.count), size, costs.to_all(ranks))
    return at + ranks * costs.decode(work.count) + costs.merge(work.size, ranks * work.count)


def split_reduce(fabric: Fabric, at: Times, work: Work) -> Times:
    """Owners sum their regions; the unions of those go to all."""
    return _by_owners(fabric, at, work, work.union(fabric.ranks), 0)


def ok_topk(fabric: Fabric, at: Times, work: Work) -> Times:
    """The same with a second selection, whose threshold takes four small counts."""
    return _by_owners(fabric, at, work, work.count, 4)


def _by_owners(fabric: Fabric, at: Times, work: Work, passed: float, looks: int) -> Times:
    costs, ranks = work.costs, fabric.ranks
    own, region = work.count / ranks, work.size / ranks
    # The regions' edges are looked at anew once in eight exchanges.
    edges = _agree(fabric, np.zeros(ranks), LENGTH * (ranks - 1), costs.message_s) / 8
    fabric.rest()
    at = at + edges + ranks * costs.call_s + costs.encode(work.count) + costs.values(work.count)
    at = fabric.all_to_all(fabric.all_to_all(at, LENGTH), work.message(own, region)) + 2 * costs.to_all(ranks)
    at = at + ranks * costs.call_s + costs.decode(work.count) + costs.merge(region, work.count)
    at = at + costs.passes(region, 2)
    for _ in range(looks):
        at = _agree(fabric, at + costs.call_s, 256 * WORD, costs.message_s)
    at = at + costs.encode(passed / ranks) + costs.to_all(ranks)
    at = gather(fabric, fabric.all_to_all(at, LENGTH), work.message(passed / ranks, region), costs.to_all(ranks))
    return at + ranks * costs.call_s + costs.decode(passed) + costs.merge(work.size, passed)


def gtopk(fabric: Fabric, at: Times, work: Work) -> Times:
    """Pairs merge and keep the largest."""
    costs, k = work.costs, work.count
    told = not work.codec.fixed
    before = costs.encode(k) + costs.values(k) + (1 + told) * costs.message_s
    after = costs.decode(k) + costs.call_s + 2 * k * costs.pair_entry_s
    return _pairs(fabric, at, lambda ranks: (work.message(k), before, after), told) + costs.merge(work.size, k)


def recursive_doubling(fabric: Fabric, at: Times, work: Work) -> Times:
    """Pairs merge and keep everything, whole buckets where that is shorter."""
    costs = work.costs

    def turn(ranks: float) -> tuple[float, float, float]:
        held, merged = work.union(ranks), work.union(2 * ranks)
        size = min(work.message(held), work.values(work.size))
        before = costs.encode(held) + costs.values(held) + 2 * costs.message_s
        return size, before, costs.decode(held) + costs.combine(2 * merged)

    return _pairs(fabric, at, turn, True) + costs.merge(work.size, work.union(fabric.ranks))


def _agree(fabric: Fabric, at: Times, size: float, message_s: float) -> Times:
    """Return when all have the sum of some whole numbers (collective.whole)."""
    return _pairs(fabric, at, lambda ranks: (size, 0.0, message_s), False)


def _pairs(fabric: Fabric, at: Times, turn: Callable[[float], tuple[float, float, float]], told: bool) -> Times:
    """Follow collective.butterfly: `turn(ranks)` gives bytes, and seconds before and after, where so many ranks hold
    the same."""
    ranks = fabric.ranks
    whole = largest_power(ranks)
    extra, at = ranks - whole, at.copy()
    every, low = np.arange(whole), np.arange(extra)

    def send(source: np.ndarray, target: np.ndarray, held: float, merges: bool) -> None:
        size, before, after = turn(held)
        at[source] += before
        if told:
            at[target] = np.maximum(at[target], fabric.deliver(at[source], source, target, np.full(len(source), 8.0)))
        arrived = fabric.deliver(at[source], source, target, np.full(len(source), size))
        at[target] = np.maximum(at[target], arrived) + (after if merges else before)

    if extra:
        send(low + whole, low, 1.0, True)
    held = 1.0
    for number in range(whole.bit_length() - 1):
        send(every, every ^ (1 << number), held * ranks / whole, True)
        held *= 2
    if extra:
        send(low, low + whole, float(ranks), False)
    return at


def hierarchical(fabric: Fabric, at: Times, work: Work) -> Times:
    """Sums inside groups of ranks, entries between them."""
    costs, ranks, mates = work.costs, fabric.ranks, min(work.group, fabric.ranks)
    groups = math.ceil(ranks / mates)
    part, own = work.size / mates, max(1.0, work.count / mates)
    at = _inside(fabric, at, mates, WORD * part) + costs.passes(part, mates) + (mates > 1) * costs.to_all(mates)
    at = at + costs.select(part) + costs.encode(own)
    size = work.message(own, part)
    if groups > 1:
        told = at if work.codec.fixed else fabric.all_to_all(at, LENGTH / mates)
        at = fabric.all_to_all(told, size / mates) + (2 - work.codec.fixed) * costs.to_all(groups)
    at = _inside(fabric, _inside(fabric, at, mates, LENGTH), mates, groups * size) + (mates > 1) * 2 * costs.to_all(
        mates
    )
    sent = groups * mates * own
    return at + groups * mates * costs.call_s + costs.decode(sent) + costs.merge(work.size, sent)


def packed(fabric: Fabric, at: Times, work: Work) -> Times:
    """All values of the update set."""
    return _values(fabric, at, work, work.size)


def dense(fabric: Fabric, at: Times, work: Work) -> Times:
    """All values of the bucket."""
    return _values(fabric, at, work, work.whole or work.size)


def _values(fabric: Fabric, at: Times, work: Work, count: int) -> Times:
    costs, ranks = work.costs, fabric.ranks
    if work.codec.values.bytes(2) - work.codec.values.bytes(1) == WORD:
        return reduce(fabric, at + costs.passes(count), WORD * count, costs.pass_element_s) + costs.passes(count, 2)
    own = count / ranks
    at = fabric.all_to_all(at + count * costs.encode_value_s, work.values(own)) + costs.to_all(ranks)
    at = at + count * costs.decode_value_s + costs.passes(count) + own * costs.encode_value_s
    return gather(fabric, at, work.values(own), costs.to_all(ranks)) + count * (
        costs.encode_value_s + 2 * costs.decode_value_s
    )


def lowrank(fabric: Fabric, at: Times, work: Work) -> Times:
    """Two thin factors, one after the other."""
    costs = work.costs
    spent = work.size * work.rank * costs.factor_element_s
    for elements in work.factor:
        at = reduce(fabric, at + spent / 2, WORD * elements, costs.pass_element_s)
    return at + costs.passes(work.size, 3)


WALKS: dict[str, Walk] = {
    "allgather": allgather,
    "split_reduce": split_reduce,
    "ok_topk": ok_topk,
    "gtopk": gtopk,
    "recursive_doubling": recursive_doubling,
    "hierarchical": hierarchical,
    "packed": packed,
    "dense": dense,
    "lowrank": lowrank,
}


def walk(name: str, fabric: Fabric, at: Times, work: Work) -> Times:
    """Return when each rank has the mean by the collective `name`, what its parts leave unexplained included."""
    size = work.whole or work.size if name == "dense" else work.size
    return WALKS[name](fabric, at + work.costs.unexplained(name, size), work)


def gather(fabric: Fabric, at: Times, size: float, to_all_s: float = 0.0) -> Times:
    """Return when all have the messages of all, `size` bytes each: passed on in a ring, short ones sent to all."""
    if size < RING:
        return fabric.all_to_all(at, size) + to_all_s
    return _ring(fabric, at, size, fabric.ranks - 1, 0.0)


def reduce(fabric: Fabric, at: Times, size: float, add_byte_s: float) -> Times:
    """Return when all have the sum of `size` bytes, by a ring; a rank adds what comes."""
    ranks = fabric.ranks
    return _ring(fabric, at, size / ranks, 2 * (ranks - 1), add_byte_s * size / ranks / WORD / 2)


def _ring(fabric: Fabric, at: Times, size: float, rounds: int, after: float) -> Times:
    """Follow `rounds` of messages to the right-hand neighbour; `after` seconds pass before one is sent on."""
    ranks = fabric.ranks
    source = np.arange(ranks)
    target = (source + 1) % ranks
    sizes = np.full(ranks, float(size))
    ready, marks = at.copy(), [float(at.max())]
    for number in range(rounds):
        arrived = np.empty(ranks)
        arrived[target] = fabric.deliver(ready, source, target, sizes)
        # Nobody passes on what it has before it is there itself.
        ready = np.maximum(arrived, at) + after
        if (number + 1) % STRIDE == 0:
            marks.append(float(ready.max()))
            if len(marks) > 3:
                former, gained = marks[-2] - marks[-3], marks[-1] - marks[-2]
                if abs(gained - former) <= ALIKE * gained:
                    return ready + gained / STRIDE * (rounds - 1 - number)
    return ready


def _inside(fabric: Fabric, at: Times, mates: int, size: float) -> Times:
    """Return when all ranks of each group have what the others of it sent them, `size` bytes each."""
    ranks = fabric.ranks
    source = np.arange(ranks)
    start, done = at, at.copy()
    for step in range(1, mates):
        target = source // mates * mates + (source + step) % mates
        real = target < ranks
        arrived = fabric.deliver(start[real], source[real], target[real], np.full(int(real.sum()), float(size)))
        np.maximum.at(done, target[real], arrived)
    return done
