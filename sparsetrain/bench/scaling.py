"""`bench scaling`: simulated seconds of every collective as ranks are added, up to thousands of nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsetrain.bench.simulation import LOWRANK
from sparsetrain.bench.table import render
from sparsetrain.collective.payload import Codec
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.config.rate import parse_rate
from sparsetrain.gradient.density import entries
from sparsetrain.plan.cluster import FULL
from sparsetrain.plan.costs import Costs
from sparsetrain.plan.costs import measure as measured_costs
from sparsetrain.plan.fabric import Fabric, Level, flat
from sparsetrain.plan.fill import Fill, Random
from sparsetrain.plan.rest import with_rest
from sparsetrain.plan.walks import WALKS, Work, walk

NAMES = tuple(name for name in WALKS if name not in (LOWRANK, "packed"))
FABRICS = ("flat", "fat_tree", "two_level", "sites")
RADIX = 32  # nodes of a rack
LOOKS = 3  # at this machine's processor, which others may use for seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """`size` elements, a share of `density` of them sent, over links of `rate` and `latency_s`.

    Fabrics: `flat`: every rank its own link. `fat_tree`: racks of 32 whose up-link is as wide as their nodes' together,
    three levels. `two_level`: eight ranks a node, 25 times the rate and a tenth of the latency inside it. `sites`: the
    ranks in four sites, joined by a link of the same rate each and 20 ms.
    """

    ranks: tuple[int, ...] = (2, 8, 32, 128, 512, 2048, 8192, 16384)
    fabric: str = "flat"
    size: int = 25_000_000
    density: float = 0.01
    rate: str = "10gbit"
    latency_s: float = 20e-6
    values: str = "bf16"
    indices: str = "elias_fano"

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        if self.fabric not in FABRICS:
            raise ValueError(f"fabric {self.fabric}: no such fabric; allowed: {', '.join(FABRICS)}")
        if not self.ranks or min(self.ranks) < 2 or self.size < 10_000 or not 0 < self.density <= 1:
            raise ValueError("want at least 2 ranks and 10000 elements, and a density in (0, 1]")
        if parse_rate(self.rate) is None or not 0 <= self.latency_s <= 1:
            raise ValueError("want a rate that has a limit, and a latency of 0 to 1 s")

    def links(self, ranks: int) -> tuple[Fabric, int]:
        """Return the fabric of so many ranks, and how many of them share a node."""
        rate = (parse_rate(self.rate) or 0) / 8 * FULL
        if self.fabric == "flat":
            return flat(ranks, rate, self.latency_s), 1
        if self.fabric == "fat_tree":
            levels, width, joined = [], rate, 1
            while joined < ranks or not levels:
                levels.append(
                    Level(name="switch", members=RADIX, rate=width, latency_s=self.latency_s * (1 + len(levels)))
                )
                joined, width = joined * RADIX, width * RADIX
            return Fabric(levels, ranks), 1
        if self.fabric == "two_level":
            inside = Level(name="node", members=8, rate=25 * rate, latency_s=self.latency_s / 10)
            outside = Level(name="network", members=max(1, -(-ranks // 8)), rate=rate, latency_s=self.latency_s)
            return Fabric([inside, outside], ranks), 8
        site = -(-ranks // 4)
        inside = Level(name="site", members=site, rate=rate, latency_s=self.latency_s)
        return Fabric([inside, Level(name="wan", members=4, rate=rate, latency_s=0.02)], ranks), site


def measure(plan: Plan, fill: Fill | None = None, costs: Costs | None = None) -> list[dict[str, Any]]:
    """Return a row per number of ranks with the milliseconds of every collective, and the quickest."""
    config = adapter(Exchange).validate_python({"values": plan.values, "indices": plan.indices})
    codec = Codec(config.indices.build(), config.values.build())
    if costs is None:
        looks = [with_rest(measured_costs(codec, plan.density), codec, plan.density) for _ in range(LOOKS)]
        costs = Costs.middle(looks)
    rows = []
    for ranks in plan.ranks:
        fabric, group = plan.links(ranks)
        work = Work(
            size=plan.size,
            count=entries(plan.density, plan.size),
            codec=codec,
            costs=costs,
            fill=fill or Random(),
            group=group,
        )
        row: dict[str, Any] = {"ranks": ranks}
        for name in NAMES:
            fabric.rest()
            row[name] = 1e3 * float(walk(name, fabric, np.zeros(ranks), work).max())
        rows.append({**row, "best": min(NAMES, key=row.__getitem__)})
    return rows


def show(rows: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """Return the table that people read, under one line that says what was simulated."""
    heading = (
        f"simulated, {plan.fabric}: {plan.size} elements, density {plan.density:g}, {plan.values}, {plan.indices}, "
        f"{plan.rate} links of {1e6 * plan.latency_s:g} us; ms of an exchange after selection"
    )
    return f"{heading}\n{render(rows, ('ranks', *NAMES, 'best'))}"
