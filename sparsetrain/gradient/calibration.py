"""What the network between the ranks can do, measured in a fraction of a second with messages of growing size."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable

import torch

from sparsetrain.collective.transport import Transport
from sparsetrain.gradient.cost import Network

PINGS = 9
TURNS = 3
SMALLEST, LARGEST = 1 << 16, 1 << 22  # bytes of a message
# A longer message than this tells nothing new; much of a shorter one can pass in the burst that a shaped link lets by.
LONG_S = 0.03
FASTEST = 1e12  # bytes a second, where a difference of two times is too small to see


def measure_network(transport: Transport) -> Network:
    """Return what rank 0 has measured, the same on all ranks. Collective.

    Latency is that of a small all-gather, whose messages are ceil(log2 P). One rank alone gives rates without a limit.
    """
    if transport.size == 1:
        return Network(latency_s=0.0, reduce_rate=FASTEST, gather_rate=FASTEST)
    word = torch.zeros(8, dtype=torch.uint8, device=transport.device)
    transport.all_gather(word, "control")  # the first one connects
    pings = [_timed(transport, lambda: transport.all_gather(word, "control")) for _ in range(PINGS)]
    latency = statistics.quantiles(pings)[0] / math.ceil(math.log2(transport.size))
    others = transport.size - 1

    def gather(count: int) -> None:
        message = torch.zeros(count, dtype=torch.uint8, device=transport.device)
        transport.all_gather_v(message, "control", [count] * transport.size)

    def reduce(count: int) -> None:
        transport.all_reduce(torch.zeros(count // 4, device=transport.device), "control")

    return Network(
        latency_s=latency,
        gather_rate=_rate(transport, gather, others, latency),
        reduce_rate=_rate(transport, reduce, 2 * others / transport.size, latency),
    )


def probe(transport: Transport, before: Network) -> Network:
    """Return the network of before with its rates scaled to what a gather of about LONG_S says now. Collective."""
    if transport.size == 1:
        return before
    others = transport.size - 1
    count = int(min(max(before.gather_rate * LONG_S / others, SMALLEST), LARGEST))
    message = torch.zeros(count, dtype=torch.uint8, device=transport.device)
    spent = min(
        _timed(transport, lambda: transport.all_gather_v(message, "control", [count] * transport.size))
        for _ in range(TURNS)
    )
    rate = others * count / max(spent - before.latency_s, 1e-9)
    return dataclasses.replace(before, gather_rate=rate, reduce_rate=before.reduce_rate * rate / before.gather_rate)


def _rate(transport: Transport, send: Callable[[int], object], copies: float, latency: float) -> float:
    """Return payload bytes a second that a rank sends; `send(n)` puts `copies` times n bytes on its link."""
    count = SMALLEST
    # The shortest of several: whatever else runs on the machine can only add to it.
    while (spent := min(_timed(transport, lambda n=count: send(n)) for _ in range(TURNS))) < LONG_S and count < LARGEST:
        count *= 2
    spent -= latency
    return min(FASTEST, copies * count / max(spent, 1e-9))


def _timed(transport: Transport, call: Callable[[], object]) -> float:
    """Return rank 0's seconds, on all ranks: what steers a loop must be the same everywhere. Collective."""
    transport.barrier()
    began = time.perf_counter()
    call()
    seconds = torch.tensor([time.perf_counter() - began], dtype=torch.float64, device=transport.device)
    transport.broadcast(seconds, "control")
    return float(seconds)
