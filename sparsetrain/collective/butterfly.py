"""Ranks swap what they hold in pairs and merge it, in log2 P rounds: after each, twice as many hold the same.

Where P is no power of two, the ranks above the largest one hand what they have to a partner before, and get the result
from it after. What travels may be lossy: whoever holds a set takes it as its receivers read it, so that both sides of a
pair merge the same. What a group of ranks has lost is handed back once, by its lowest rank.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import torch
from torch import Tensor

from sparsetrain.collective.allgather import merge_entries
from sparsetrain.collective.collective import Collective
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.payload import Codec, Frame, is_whole, longest
from sparsetrain.collective.some import send, send_v
from sparsetrain.collective.world import World
from sparsetrain.kernels.combine import combine
from sparsetrain.kernels.scatter import scatter_add


@dataclasses.dataclass(frozen=True)
class Swap:
    """One round of a rank: its partner, none where it has nothing to do, and which way entries go."""

    partner: int | None = None
    sends: bool = False
    receives: bool = False


def largest_power(size: int) -> int:
    """Return the largest power of two that is at most `size`."""
    return 1 << (size.bit_length() - 1)


def swaps(rank: int, size: int) -> list[Swap]:
    """Return the rounds of a rank, as many as every other rank has."""
    whole = largest_power(size)
    extra, rounds = size - whole, whole.bit_length() - 1
    first, last = Swap(), Swap()
    if rank >= whole:
        first, last = Swap(rank - whole, sends=True), Swap(rank - whole, receives=True)
    elif rank < extra:
        first, last = Swap(rank + whole, receives=True), Swap(rank + whole, sends=True)
    pairs = [Swap() if rank >= whole else Swap(rank ^ (1 << j), sends=True, receives=True) for j in range(rounds)]
    return [first, *pairs, last] if extra else pairs


class Butterfly(Collective):
    """The walk; `merged` says what two sets become."""

    support = "own"

    def exchange(self, entries: Entries, frame: Frame, codec: Codec, world: World, out: Tensor) -> Outcome:
        """See Collective. Entries must not be shared: there is nothing to gain then."""
        assert entries.indices is not None
        held = dataclasses.replace(entries, indices=entries.indices.cpu(), values=entries.values.cpu())
        walk = _Walk(self, frame, codec, world, [])
        held = walk.result(held)
        if not held.finite:
            return Outcome(finite=False)
        if held.indices is None:
            out.copy_(held.values).mul_(1.0 / world.size)
        else:
            merge_entries([held], out, 1.0 / world.size)
        left = tuple(
            Entries(None if e.indices is None else e.indices.to(out.device), e.values.to(out.device))
            for e in walk.leftover
        )
        return Outcome(left, self.arrived(entries.indices, held), distinct=len(held))

    @abc.abstractmethod
    def merged(self, low: Entries, high: Entries, frame: Frame, codec: Codec) -> tuple[Entries, Entries | None]:
        """Return the sum of two sets as it is passed on, and what it lacks, None for nothing."""

    def arrived(self, indices: Tensor, result: Entries) -> Tensor | None:
        """Return which of this rank's entries are in the result, None for all."""
        return None

    def fixed(self, entries: Entries) -> bool:
        """Return whether all sets that travel are as large as this one."""
        return False


@dataclasses.dataclass
class _Walk:
    """One exchange of a rank, and what it has to keep of it."""

    collective: Butterfly
    frame: Frame
    codec: Codec
    world: World
    leftover: list[Entries]

    def result(self, held: Entries) -> Entries:
        """Return what all ranks hold in the end. Collective."""
        rank, size = self.world.rank, self.world.size
        whole = largest_power(size)
        rounds = swaps(rank, size)
        before = 1 if size > whole else 0
        for number, swap in enumerate(rounds):
            # So many ranks hold what this one holds; the lowest of them answers for it.
            alike = 1 << max(0, number - before)
            after = before and number == len(rounds) - 1
            if swap.sends or (after and rank < whole):
                held = self._as_read(held, rank % alike == 0)
            received = self._swap(held, swap, number)
            if received is None:
                continue
            assert swap.partner is not None
            if after:  # the result, for a rank that took no part in the rounds between
                held = received
            else:
                pair = (held, received) if rank < swap.partner else (received, held)
                held = self._merged(*pair, rank % (alike if number < before else 2 * alike) == 0)
        return held if rounds else self._as_read(held, True)  # alone a rank rounds too: values are the same at any size

    def _as_read(self, held: Entries, answers: bool) -> Entries:
        """Return what receivers read of `held`; who answers for it keeps what the encoding takes."""
        values = self.codec.values.decode(self.codec.values.encode(held.values), len(held))
        if answers:
            self.leftover.append(Entries(held.indices, held.values - values))
        return dataclasses.replace(held, values=values)

    def _merged(self, low: Entries, high: Entries, answers: bool) -> Entries:
        total, lost = self.collective.merged(low, high, self.frame, self.codec)
        if lost is not None and answers:
            self.leftover.append(lost)
        finite = low.finite and high.finite and bool(torch.isfinite(total.values).all())  # a sum can overflow
        return total if finite else dataclasses.replace(total, values=torch.zeros_like(total.values), finite=False)

    def _swap(self, held: Entries, swap: Swap, number: int) -> Entries | None:
        """Send to the partner and return what it sends, None where it sends nothing. Collective: every rank calls it
        in every round."""
        frame = dataclasses.replace(self.frame, part=number)
        transport, to = self.world.transport, -1 if swap.partner is None else swap.partner
        parts = {to: self.codec.encode(held, frame).to(transport.device)} if swap.sends else {}
        sources = [to] if swap.receives else []
        if self.codec.fixed and self.collective.fixed(held):
            answers = send(parts, dict.fromkeys(sources, self.codec.bytes(len(held), frame.size)), transport)
        else:
            answers = send_v(parts, sources, longest(frame.size), transport)
        if to not in answers:
            return None
        whole = Entries(None, torch.empty(frame.size), shared=True) if is_whole(answers[to], to) else None
        read = self.codec.decode(answers[to], frame, to, whole)
        return dataclasses.replace(read, asked=held.asked, even=held.even)


def rounds_of(ranks: int) -> float:
    """Return the mean number of messages that a rank sends."""
    whole = largest_power(ranks)
    return (whole * math.log2(whole) + 2 * (ranks - whole)) / ranks


def depth_of(ranks: int) -> int:
    """Return the messages that follow one another."""
    whole = largest_power(ranks)
    return whole.bit_length() - 1 + (2 if ranks > whole else 0)


def added(one: Entries, other: Entries) -> Entries:
    """Return the sum of two sets, of which each may be the whole bucket."""
    if one.indices is not None and other.indices is not None:
        places, sums = combine((one.indices, one.values), (other.indices, other.values))
        return dataclasses.replace(one, indices=places, values=sums)
    if one.indices is not None:
        one, other = other, one
    if other.indices is None:
        return dataclasses.replace(one, values=one.values + other.values)
    return dataclasses.replace(one, values=scatter_add(one.values.clone(), other.indices, other.values))
