"""The seconds of a whole training step: computing, and the exchange of all buckets beside and after it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from sparsetrain import registry
from sparsetrain.collective.collective import Collective, Load, Volume
from sparsetrain.collective.payload import Codec
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.cost import BACKWARD
from sparsetrain.gradient.density import entries
from sparsetrain.plan.costs import Costs
from sparsetrain.plan.fabric import Fabric, Level, Times
from sparsetrain.plan.fill import Fill
from sparsetrain.plan.model import Model, Part
from sparsetrain.plan.walks import Work, gather, walk

WAYS = 3  # buckets on the wire at once (gradient.exchange.WAYS)
WORD = 40  # bytes that ranks exchange when all has arrived
FP32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One way for all buckets: a regime, the collective of the sparse one, and steps between two exchanges."""

    regime: str
    collective: str = ""
    every: int = 1
    group: int = 0  # ranks that follow one another, of hierarchical; 0: those of a node

    @property
    def name(self) -> str:
        """Return what a table says."""
        return (
            (self.collective or self.regime)
            + (f" of {self.group}" * (self.group > 0))
            + (f" every {self.every}" if self.every > 1 else "")
        )

    @property
    def lossless(self) -> bool:
        """Return whether training is what it is without compression."""
        return self.regime in ("dense", "packed") and self.every == 1

    def steps_factor(self, exchange: Exchange) -> float:
        """Return the steps to equal loss over those of dense training, as the job says."""
        return next((factor for name, factor in exchange.steps_factor.items() if name == self.regime), 1.0)

    @property
    def walk(self) -> str:
        """Return the walk that the buckets take."""
        return self.collective if self.regime == "sparse" else self.regime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What the processors do: seconds of computing a step, and of each part of the exchange with these codes."""

    compute_s: float
    costs: Costs
    codec: Codec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """What the exchange runs beside: every rank's seconds of computing, whether buckets leave during backward, the free
    share of a core, and ranks of a node."""

    compute: Times
    overlap: bool = True
    spare: float = 0.0
    group: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Mean seconds of a step, those of the exchange that nothing hides, of processors for it, and the bytes that a rank
    sends a step, over the network and inside its node."""

    seconds: float
    exposed_s: float
    processor_s: float
    bytes: float
    near: float


def simulate(
    setting: Setting, model: Model, exchange: Exchange, fabric: Fabric, profile: Profile, fill: Fill, beside: Beside
) -> Step:
    """Return what a step takes."""
    fabric.rest()
    codec, costs = profile.codec, profile.costs
    ready_at, lost = beside.compute, 1.0 - beside.spare
    hidden = beside.overlap and setting.every == 1
    whole, done, spent = sum(part.size for part in model.parts), 0, 0.0
    selected = np.zeros(fabric.ranks)
    ways = [np.zeros(fabric.ranks) for _ in range(WAYS if beside.overlap else 1)]
    for number, part in enumerate(model.parts):
        done += part.size
        work = work_of(setting, part, exchange, codec, costs, fill, setting.group or beside.group)
        ready = ready_at
        if hidden:
            ready = ready_at * (1.0 - BACKWARD * (1.0 - done / whole)) + lost * spent
        before = _select(setting, part, costs)
        selected = np.maximum(selected, ready) + before
        way = ways[number % len(ways)]
        busy = processor_s(setting.walk, work, fabric.ranks)
        way[:] = walk(setting.walk, fabric, np.maximum(selected, way), work)
        spent += before + busy
    last = np.maximum.reduce([ready_at, *ways])
    small = Work(size=max(1, model.small), count=max(1, model.small), codec=codec, costs=costs, fill=fill)
    if model.small:
        last = np.maximum(last, walk("dense", fabric, np.maximum(ways[min(1, len(ways) - 1)], ready_at), small))
    last = np.maximum(last, ready_at + lost * spent)
    last = gather(fabric, last, WORD)
    exposed = float(last.max() - ready_at.max())
    volume = sent(setting, model, exchange, codec, fabric.ranks, setting.group or beside.group)
    return Step(
        seconds=float(ready_at.max()) + exposed / setting.every,
        exposed_s=exposed / setting.every,
        processor_s=spent / setting.every,
        bytes=volume.bytes / setting.every,
        near=volume.near / setting.every,
    )


@functools.lru_cache(maxsize=4096)
def processor_s(name: str, work: Work, ranks: int) -> float:
    """Return the processor's part of a walk: what is left of it on links that take no time."""
    nothing = Fabric([Level(name="nothing", members=ranks, rate=1e15, latency_s=0.0)], ranks)
    return float(walk(name, nothing, np.zeros(ranks), work).max())


def work_of(
    setting: Setting, part: Part, exchange: Exchange, codec: Codec, costs: Costs, fill: Fill, group: int
) -> Work:
    """Return a bucket as its walk sees it."""
    return Work(
        size=part.active,
        count=entries(exchange.density, part.active),
        codec=codec,
        costs=costs,
        fill=fill,
        group=group,
        whole=part.size,
        factor=(part.left, part.right),
        rank=exchange.rank,
    )


def sent(setting: Setting, model: Model, exchange: Exchange, codec: Codec, ranks: int, group: int) -> Volume:
    """Return what a rank sends in an exchange, by the formulas of the collectives."""
    total = near = 0.0
    for part in model.parts:
        if setting.regime == "lowrank":
            total += 2 * FP32 * (part.left + part.right) * (ranks - 1) / ranks
            continue
        size = part.size if setting.regime == "dense" else part.active
        count = entries(exchange.density, size) if setting.regime == "sparse" else size
        component = {"sparse": setting.collective, "dense": "dense", "packed": "packed"}[setting.regime]
        load = Load(
            ranks=ranks,
            size=size,
            count=count,
            entry_bytes=codec.bytes(count, size) / count,
            value_bytes=codec.bytes(count, size, shared=True) / count,
        )
        volume = _collective(component, group).volume(load)
        total, near = total + volume.bytes, near + volume.near
    total += 2 * codec.bytes(max(1, model.small), max(1, model.small), shared=True) * (ranks - 1) / ranks
    return Volume(total, 0.0, near)


def _collective(name: str, group: int) -> Collective:
    cls: Any = registry.load("collective", name)
    return cls(cls.Config(group=group) if name == "hierarchical" else cls.Config())


def _select(setting: Setting, part: Part, costs: Costs) -> float:
    """Return the seconds before the wire that are not in the walk."""
    if setting.regime == "sparse" and setting.collective != "hierarchical":
        return costs.select(part.active) + costs.passes(part.size if part.active < part.size else 0)
    if setting.regime == "packed" and part.active < part.size:
        return costs.passes(part.size + part.active)
    return costs.passes(part.size)
