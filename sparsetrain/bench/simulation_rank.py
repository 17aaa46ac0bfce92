"""One rank of `bench simulation`: `python -m sparsetrain.bench.simulation_rank SPEC.json`."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

from sparsetrain.bench.rank import Way, serve
from sparsetrain.bench.ranks import Place
from sparsetrain.bench.simulation import NAMES, Plan
from sparsetrain.collective.world import World
from sparsetrain.gradient.calibration import measure_network
from sparsetrain.plan.costs import measure as measured_costs
from sparsetrain.plan.rest import call_of, with_rest

WARMUP = 2


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: the network, and seconds of each collective in each round. Collective."""
    transport = way()
    world = World(rank=place.rank, size=place.ranks, transport=transport, node=f"host{place.rank}")
    network = measure_network(transport)
    codec = plan.codec()
    costs = with_rest(measured_costs(codec, plan.density), codec, plan.density)
    calls = {name: call_of(name, world, codec, plan.density, plan.size) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARMUP + plan.rounds):
        for name, call in calls.items():
            transport.barrier()
            began = time.perf_counter()
            call()
            if turn >= WARMUP:
                seconds[name].append(time.perf_counter() - began)
    return {"network": dataclasses.asdict(network), "costs": dataclasses.asdict(costs), "seconds": seconds}


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
