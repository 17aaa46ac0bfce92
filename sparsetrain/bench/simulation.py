"""`bench simulation`: the simulated seconds of every collective next to those that real ranks take.

Ranks in network namespaces exchange one bucket of noise by each collective, in turns, over links of several rates. The
simulation gets what a short measurement of that network says (latency and rates, by messages of its own) and what the
processor takes for each part of the work alone, before, among and after the turns; where ranks share cores it takes
them so much longer.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsetrain import registry
from sparsetrain.bench import table
from sparsetrain.bench.ranks import Ranks, run
from sparsetrain.collective.payload import Codec
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.density import entries
from sparsetrain.plan.costs import Costs
from sparsetrain.plan.fabric import flat
from sparsetrain.plan.fill import Random
from sparsetrain.plan.walks import WALKS, Work, walk

Rows = list[dict[str, Any]]
COLUMNS = ("rate", "ranks", "collective", "measured_ms", "simulated_ms", "error")
LOWRANK = "lowrank"
NAMES = tuple(name for name in WALKS if name != LOWRANK)
COLUMNS_OF = 1000  # of the matrix that lowrank takes the bucket for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to exchange: `size` elements of which a share of `density` is sent, `rounds` times by each collective."""

    size: int = 2_000_000
    density: float = 0.01
    values: str = "bf16"
    indices: str = "elias_fano"
    rounds: int = 7

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        if self.rounds < 1 or self.size < 10_000 or not 0 < self.density <= 1:
            raise ValueError("want at least 1 round and 10000 elements, and a density in (0, 1]")
        for kind, name in (("index_code", self.indices), ("value_code", self.values)):
            registry.load(kind, name)

    def codec(self) -> Codec:
        """Return the codes that the collectives use."""
        config = adapter(Exchange).validate_python({"values": self.values, "indices": self.indices})
        return Codec(config.indices.build(), config.values.build())


def measure(ranks: Sequence[Ranks], plan: Plan) -> list[dict[str, Any]]:
    """Return a row with COLUMNS for each collective and cell. Raises RankFailed, and HostsUnavailable where there can
    be no hosts; nothing is left running then."""
    return over(ranks, "sparsetrain.bench.simulation_rank", plan, compare)


def over(ranks: Sequence[Ranks], module: str, plan: Any, compare: Callable[[Ranks, Any, Any], Rows]) -> Rows:
    """Return the rows that `compare(cell, figures, plan)` makes of each cell's figures, which the program `module`
    measures there."""
    return [row for cell in ranks for row in compare(cell, run(cell, module, dataclasses.asdict(plan)), plan)]


def compare(cell: Ranks, figures: Sequence[Mapping[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of one cell."""
    shared = max(1.0, cell.hosts / len(os.sched_getaffinity(0)))
    looks = [(look["network"], costs_of([look]).scaled(shared)) for look in figures[0]["looks"]]
    found = []
    for name in figures[0]["seconds"]:
        slowest = [max(t) for t in zip(*(each["seconds"][name] for each in figures), strict=True)]
        measured = statistics.median(slowest)
        simulated = statistics.median(simulate(name, cell.hosts, network, plan, costs) for network, costs in looks)
        found.append(
            {
                "rate": cell.rate,
                "ranks": cell.hosts,
                "collective": name,
                "measured_ms": 1e3 * measured,
                "simulated_ms": 1e3 * simulated,
                "error": simulated / measured - 1.0,
            }
        )
    return found


def costs_of(figures: Sequence[Mapping[str, Any]]) -> Costs:
    """Return the costs that rank 0 has measured, all ranks at work."""
    found = dict(figures[0]["costs"])
    rest = tuple((name, each) for name, each in found.pop("rest"))
    return Costs(**found, rest=rest)


def simulate(name: str, ranks: int, network: Mapping[str, float], plan: Plan, costs: Costs) -> float:
    """Return the seconds of one collective among so many ranks that are joined alike."""
    rate = network["reduce_rate" if name in ("dense", "packed") and plan.values == "fp32" else "gather_rate"]
    fabric = flat(ranks, rate, network["latency_s"])
    work = Work(
        size=plan.size,
        count=entries(plan.density, plan.size),
        codec=plan.codec(),
        costs=costs,
        fill=Random(),
    )
    return float(walk(name, fabric, np.zeros(ranks), work).max())


def errors(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the median and the 90th percentile of the errors' sizes."""
    sizes = sorted(abs(row["error"]) for row in rows)
    return statistics.median(sizes), sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))]


def show(rows: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """Return the table that people read, under one line that says what was measured."""
    median, tenth = errors(rows)
    heading = (
        f"{plan.size} elements, density {plan.density:g}, {plan.values}, {plan.indices}, {plan.rounds} rounds: "
        f"error {median:.1%} in the median, {tenth:.1%} at the 90th percentile"
    )
    return f"{heading}\n{table.render(rows, COLUMNS)}"
