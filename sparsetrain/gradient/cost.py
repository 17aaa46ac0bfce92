"""The cost model: what a step takes when its buckets travel in a given way. Arithmetic only, nothing is measured here.

A bucket waits for its gradient, for the thread that selects, and for the link, which carries one bucket's bytes at a
time; then come its messages' latencies and the merge. Without a processor to spare, what the exchange computes is time
that forward and backward do not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sparsetrain.collective.collective import Volume

BACKWARD = 2 / 3  # share of the compute time in which gradients appear, evenly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """`latency_s`: seconds of one message; payload bytes a second that a rank sends in an all-reduce (`reduce_rate`)
    and in a gather (`gather_rate`)."""

    latency_s: float
    reduce_rate: float
    gather_rate: float

    def seconds(self, volume: Volume, reduces: bool) -> float:
        """Return how long the link is busy with a volume, without latencies."""
        return volume.bytes / (self.reduce_rate if reduces else self.gather_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """One bucket's way: seconds of `select` before the wire and of `merge` after it (codes included), what it sends,
    and whether that goes by all-reduce (else by gathers)."""

    select_s: float
    merge_s: float
    volume: Volume
    reduces: bool = False

    @property
    def processor_s(self) -> float:
        """Return the seconds of a processor."""
        return self.select_s + self.merge_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """What happens beside the exchange: seconds of forward, backward and optimizer a step; steps between two
    exchanges; whether buckets leave during backward; the share of a processor that is free meanwhile (0 to 1)."""

    seconds: float
    every: int = 1
    overlap: bool = True
    spare: float = 0.0


def alone_seconds(stages: Stages, network: Network) -> float:
    """Return what a bucket takes with nothing beside it."""
    wire = network.seconds(stages.volume, stages.reduces) + stages.volume.messages * network.latency_s
    return stages.processor_s + wire


def exchange_seconds(stages: Sequence[Stages], sizes: Sequence[int], network: Network, compute: Compute) -> float:
    """Return the seconds from the start of a step to the last mean, for buckets in the order in which they leave.

    `sizes` are the elements of the buckets: backward finishes a bucket when its share of the elements is done. Without
    overlap, or with local steps, nothing leaves before the compute time is over.
    """
    hidden = compute.overlap and compute.every == 1
    lost = 1.0 - compute.spare
    whole, done, spent = sum(sizes), 0, 0.0
    selected, link, last = 0.0, 0.0, 0.0
    for stage, size in zip(stages, sizes, strict=True):
        done += size
        ready = compute.seconds
        if hidden:
            ready = compute.seconds * (1.0 - BACKWARD * (1.0 - done / whole)) + lost * spent
        selected = max(selected, ready) + stage.select_s
        link = max(link, selected) + network.seconds(stage.volume, stage.reduces)
        last = max(last, link + stage.volume.messages * network.latency_s) + stage.merge_s
        spent += stage.processor_s
    return max(last, compute.seconds + lost * spent)


def step_seconds(stages: Sequence[Stages], sizes: Sequence[int], network: Network, compute: Compute) -> float:
    """Return the mean seconds of a step, of which every `compute.every`-th exchanges."""
    exchanging = exchange_seconds(stages, sizes, network, compute)
    return compute.seconds + (exchanging - compute.seconds) / compute.every
