"""One rank of `bench simulation`: `python -m sparsetrain.bench.simulation_rank SPEC.json`."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from sparsetrain import registry
from sparsetrain.bench.rank import Way, serve
from sparsetrain.bench.ranks import Place
from sparsetrain.bench.simulation import NAMES, Plan
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.hierarchical import Hierarchical
from sparsetrain.collective.payload import Frame
from sparsetrain.collective.world import World
from sparsetrain.gradient.calibration import measure_network
from sparsetrain.gradient.density import entries
from sparsetrain.kernels.select import select

WARMUP = 2


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: the network, and seconds of each collective in each round. Collective."""
    transport = way()
    world = World(rank=place.rank, size=place.ranks, transport=transport, node=f"host{place.rank}")
    network = measure_network(transport)
    calls = {name: _call(name, world, plan) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARMUP + plan.rounds):
        for name, call in calls.items():
            transport.barrier()
            began = time.perf_counter()
            call()
            if turn >= WARMUP:
                seconds[name].append(time.perf_counter() - began)
    return {"network": dataclasses.asdict(network), "seconds": seconds}


def _call(name: str, world: World, plan: Plan) -> Callable[[], object]:
    """Return one exchange of the same entries; what is selected on the way is part of it."""
    cls: Any = registry.load("collective", name)
    collective, codec, frame = cls(cls.Config()), plan.codec(), Frame(plan.size, 0, 0)
    k, out = entries(plan.density, plan.size), torch.empty(plan.size)
    noise = torch.randn(plan.size, generator=torch.Generator().manual_seed(world.rank))
    if collective.support in ("shared", "all"):
        whole = Entries(None, noise, shared=True, asked=plan.size)
        return lambda: collective.exchange(whole, frame, codec, world, out)
    if isinstance(collective, Hierarchical):
        return lambda: _levels(collective, noise.clone(), k, frame, codec, world, out)
    chosen = select(None, noise, k)
    own = Entries(chosen.indices, chosen.values, asked=k)
    return lambda: collective.exchange(own, frame, codec, world, out)


def _levels(collective: Hierarchical, buffer: Any, k: int, frame: Frame, codec: Any, world: World, out: Any) -> None:
    collective.add_up(buffer, frame.bucket, world)
    place = collective.place(frame.bucket, world)
    low, high = place.edges(place.number, frame.size)
    chosen = select(None, buffer[low:high].contiguous(), max(1, k * (high - low) // frame.size))
    collective.exchange(Entries(chosen.indices + low, chosen.values, asked=k), frame, codec, world, out)


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
