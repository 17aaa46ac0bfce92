"""Links between ranks, and when messages arrive over them.

A fabric is a tree of levels: ranks in nodes, nodes in racks, racks in sites. What leaves a member of a level goes over
that member's up-link, and comes in over its down-link, both of the level's rate: so a fat tree, two levels and sites
behind a thin line are the same thing with other numbers. Messages of one link queue in the order in which they begin,
and a message takes as long as the slowest of its links (they pass it on while it comes in).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
Ranks = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """`members` are joined, each by a link of `rate` bytes a second in each direction; a message between two of them
    takes `latency_s` beside its bytes. A member is a rank at the first level, then what the level below joins."""

    name: str
    members: int
    rate: float
    latency_s: float


class Fabric:
    """`levels` from the inside out; the last one joins all there is. Links keep what they have to do yet."""

    def __init__(self, levels: Sequence[Level], ranks: int) -> None:
        self.levels = tuple(levels)
        self.ranks = ranks
        sizes = [1]  # ranks in a member of each level
        for level in self.levels:
            sizes.append(sizes[-1] * level.members)
        if sizes[-1] < ranks:
            raise ValueError(f"{ranks} ranks where the levels hold {sizes[-1]}")
        self.sizes = sizes[:-1]
        self._free = [(np.zeros(-(-ranks // size)), np.zeros(-(-ranks // size))) for size in self.sizes]

    def rest(self) -> None:
        """Let all links be idle."""
        for out, into in self._free:
            out.fill(0.0)
            into.fill(0.0)

    def deliver(self, start: Times, source: Ranks, target: Ranks, size: Times) -> Times:
        """Return when messages of `size` bytes arrive that are ready at `start`; between a rank and itself at once."""
        crosses = self._level(source, target)
        done = start.copy()
        for number, (level, width) in enumerate(zip(self.levels, self.sizes, strict=True)):
            over = np.flatnonzero(crosses >= number)
            if not over.size:
                break
            spent = size[over] / level.rate
            for links, ends in zip(self._free[number], (source, target), strict=True):
                done[over] = np.maximum(done[over], _queue(links, ends[over] // width, start[over], spent))
        latency = np.array([0.0, *(level.latency_s for level in self.levels)])
        return done + latency[crosses + 1]

    def all_to_all(self, start: Times, sent: float | Times) -> Times:
        """Return when every rank has what all others have sent it: `sent` bytes of each rank to each other one."""
        ready, done = float(start.max()), np.full(self.ranks, float(start.max()))
        for number, (level, width) in enumerate(zip(self.levels, self.sizes, strict=True)):
            member = np.arange(self.ranks) // width
            count = np.bincount(member)
            if len(count) < 2:
                break
            outside = self.ranks - count
            mean = np.broadcast_to(np.asarray(sent, dtype=float), (self.ranks,))
            out = np.bincount(member, weights=mean) * outside
            into = count * (mean.sum() - np.bincount(member, weights=mean))
            out_free, into_free = self._free[number]
            for links, load in ((out_free, out), (into_free, into)):
                links[:] = np.maximum(links, ready) + load / level.rate
                done = np.maximum(done, links[member])
        return done + self.longest()

    def longest(self) -> float:
        """Return the latency of the outermost level that is crossed."""
        crossed = [lv.latency_s for lv, width in zip(self.levels, self.sizes, strict=True) if width < self.ranks]
        return max(crossed, default=0.0)

    def _level(self, source: Ranks, target: Ranks) -> NDArray[np.int64]:
        """Return the outermost level that each message crosses, -1 for none."""
        crosses = np.full(source.shape, -1, dtype=np.int64)
        for number, width in enumerate(self.sizes):
            crosses[source // width != target // width] = number
        return crosses


def _queue(free: Times, link: NDArray[np.int64], start: Times, spent: Times) -> Times:
    """Return when messages are through their links, which serve in the order of `start`; `free` is moved on."""
    if np.bincount(link).max() == 1:
        done = np.maximum(start, free[link]) + spent
        free[link] = done
        return done
    order = np.lexsort((start, link))
    link, ready, spent = link[order], np.maximum(start[order], free[link[order]]), spent[order]
    first = np.flatnonzero(np.concatenate(([True], link[1:] != link[:-1])))
    done = np.empty_like(ready)
    # end(i) = max over j <= i of ready(j) + spent(j) + ... + spent(i): a running maximum once the sums are taken out.
    lengths = np.diff(np.append(first, len(link)))
    total = np.cumsum(spent)
    before = np.concatenate(([0.0], total[:-1]))
    base = np.repeat(before[first], lengths)
    through, slack = total - base, ready - (before - base)
    far = np.repeat(np.arange(len(first)), lengths) * (np.ptp(slack) + 1.0)  # one link's maximum is not the next one's
    ends = np.maximum.accumulate(slack + far) - far + through
    done[order] = ends
    last = first + lengths - 1
    free[link[last]] = ends[last]
    return done


def flat(ranks: int, rate: float, latency_s: float) -> Fabric:
    """Return ranks that are all joined alike."""
    return Fabric([Level(name="network", members=ranks, rate=rate, latency_s=latency_s)], ranks)


def rounds(ranks: int) -> int:
    """Return ceil(log2 P)."""
    return math.ceil(math.log2(ranks)) if ranks > 1 else 0
