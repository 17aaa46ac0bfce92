"""One rank of `bench simulation`: `python -m sparsetrain.bench.simulation_rank SPEC.json`."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import time
from typing import Any

import torch

from sparsetrain.bench.rank import PINGS, Way, serve
from sparsetrain.bench.ranks import Place
from sparsetrain.bench.simulation import NAMES, Plan
from sparsetrain.collective.payload import Codec
from sparsetrain.collective.some import send
from sparsetrain.collective.transport import Transport
from sparsetrain.collective.world import World
from sparsetrain.gradient.calibration import measure_network
from sparsetrain.plan.costs import Costs
from sparsetrain.plan.costs import measure as measured_costs
from sparsetrain.plan.rest import call_of, with_rest

WARMUP = 2


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: what network and processor do before, among and after the rounds, since a shared
    machine drifts, and seconds of each collective in each round. Collective."""
    transport = way()
    world = World(rank=place.rank, size=place.ranks, transport=transport, node=f"host{place.rank}")
    codec, looks = plan.codec(), []
    calls = {name: call_of(name, world, codec, plan.density, plan.size) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARMUP + plan.rounds):
        if turn in (0, WARMUP + plan.rounds // 2):
            looks.append(_look(transport, codec, plan.density))
        for name, call in calls.items():
            transport.barrier()
            began = time.perf_counter()
            call()
            if turn >= WARMUP:
                seconds[name].append(time.perf_counter() - began)
    looks.append(_look(transport, codec, plan.density))
    return {"looks": looks, "seconds": seconds}


def _look(transport: Transport, codec: Codec, density: float) -> dict[str, Any]:
    """Return what the network and the processor do now. Collective."""
    network = dataclasses.asdict(measure_network(transport))
    costs = costs_here(transport, network, codec, density)
    return {"network": network, "costs": dataclasses.asdict(costs)}


def costs_here(transport: Transport, network: dict[str, float], codec: Codec, density: float) -> Costs:
    """Return what the processor costs, measured by rank 0 while the others wait, and make the network's latency that of
    one hop: the gather that it was measured with is a ring. Collective."""
    network["latency_s"] *= math.ceil(math.log2(transport.size)) / (transport.size - 1)
    rank, size = transport.rank, transport.size
    one = _seconds([(rank + 1) % size], [(rank - 1) % size], transport)
    everyone = [other for other in range(size) if other != rank]
    each = (_seconds(everyone, everyone, transport) - one) / max(1, size - 2)
    transport.barrier()
    costs = with_rest(measured_costs(codec, density), codec, density) if transport.rank == 0 else Costs()
    transport.barrier()
    return dataclasses.replace(
        costs, message_s=max(0.0, one - network["latency_s"]), more_s=max(0.0, each) if size > 2 else 0.0
    )


def _seconds(to: list[int], sources: list[int], transport: Transport) -> float:
    """Return the median seconds of a small message to some ranks and one from some. Collective."""
    word, spent = torch.zeros(8, dtype=torch.uint8), []
    for _ in range(PINGS):
        transport.barrier()
        began = time.perf_counter()
        send(dict.fromkeys(to, word), dict.fromkeys(sources, 8), transport)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
