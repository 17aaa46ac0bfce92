"""What a collective costs beyond the parts that are timed by themselves: memory, copies, calls.

Two simulated ranks, one at a time, exchange a bucket by the real collective; what its walk does not explain of the
processor's time is taken to grow with the bucket.
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.collective.collective import Collective
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.hierarchical import Hierarchical
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.simulated import SimulatedTransport, Simulation, TurnTaking
from sparsetrain.collective.world import World
from sparsetrain.gradient.density import entries
from sparsetrain.kernels.select import select
from sparsetrain.plan.costs import Costs, processor_seconds
from sparsetrain.plan.fill import Random
from sparsetrain.plan.step import processor_s
from sparsetrain.plan.walks import WALKS, Work

SIZE = 1 << 20
RANKS = 2


def with_rest(costs: Costs, codec: Codec, density: float) -> Costs:
    """Return the costs with what they leave unexplained of every collective."""
    simulation, token = Simulation(RANKS), threading.Lock()
    found = simulation.run(lambda world: _rank(dataclasses.replace(world, node=str(world.rank)), token, codec, density))
    work = Work(size=SIZE, count=entries(density, SIZE), codec=codec, costs=costs, fill=Random())
    rest = []
    for name in found[0]:
        seconds = statistics.fmean(each[name] for each in found)
        rest.append((name, max(0.0, seconds - processor_s(name, work, RANKS)) / SIZE))
    return dataclasses.replace(costs, rest=tuple(rest))


def _rank(world: World, token: threading.Lock, codec: Codec, density: float) -> dict[str, float]:
    transport = world.transport
    assert isinstance(transport, SimulatedTransport)
    with token:
        world = dataclasses.replace(world, transport=TurnTaking(transport.rank, transport.simulation, token))
        names = [name for name in WALKS if name in registry.names("collective")]
        return {name: processor_seconds(call_of(name, world, codec, density, SIZE)) for name in names}


def call_of(name: str, world: World, codec: Codec, density: float, size: int) -> Callable[[], object]:
    """Return one exchange of the same entries of noise; what is selected on the way is part of it. Collective."""
    cls: Any = registry.load("collective", name)
    collective: Collective = cls(cls.Config())
    frame, k, out = Frame(size, 0, 0), entries(density, size), torch.empty(size)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(world.rank))
    if collective.support in ("shared", "all"):
        whole = Entries(None, noise, shared=True, asked=size)
        return lambda: collective.exchange(whole, frame, codec, world, out)
    if isinstance(collective, Hierarchical):
        buffer = noise.clone()
        return lambda: _levels(collective, buffer, k, frame, codec, world, out)
    chosen = select(None, noise, k)
    own = Entries(chosen.indices, chosen.values, asked=k)
    return lambda: collective.exchange(own, frame, codec, world, out)


def _levels(
    collective: Hierarchical, buffer: Tensor, k: int, frame: Frame, codec: Codec, world: World, out: Tensor
) -> None:
    collective.add_up(buffer, frame.bucket, world)
    place = collective.place(frame.bucket, world)
    low, high = place.edges(place.number, frame.size)
    chosen = select(None, buffer[low:high].clone(), max(1, k * (high - low) // frame.size))
    collective.exchange(Entries(chosen.indices + low, chosen.values, asked=k), frame, codec, world, out)
