"""`bench step`: how much of the compute-only rate a whole training step keeps over links of a given rate.

A GPT of about 10 million weights on the default text, one process per host. Ours is the product's own training step;
the others are what torch offers, on the same model, optimizer and batches. The hosts share one machine's processors.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.bench import table
from sparsetrain.bench.ranks import Ranks, run

IDEAL = "compute only"
COLUMNS = ("name", "seconds", "share_of_compute", "interface_bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: `rounds` turns of `steps` steps by each candidate, `batch` sequences a rank and step."""

    layers: int = 6
    width: int = 320
    vocabulary: int = 8192
    context: int = 128
    batch: int = 4
    density: float = 0.01
    steps: int = 10
    rounds: int = 5

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        sizes = (self.layers, self.width, self.context, self.batch, self.steps, self.rounds)
        if min(sizes) < 1 or self.vocabulary < 256 or self.width % 4 or not 0 < self.density <= 1:
            raise ValueError(
                "want counts of at least 1, a vocabulary of at least 256, a width that 4 divides, a density in (0, 1]"
            )


def measure(ranks: Ranks, plan: Plan) -> dict[str, Any]:
    """Return ranks and plan, the number of weights, and a row per candidate with COLUMNS (bytes a rank and step).

    `share_of_compute` is the rate of steps over that of the same step without any exchange, all ranks at work.
    Raises RankFailed, and HostsUnavailable where there can be no hosts; nothing is left running then.
    """
    figures = run(ranks, "sparsetrain.bench.step_rank", dataclasses.asdict(plan))
    of_rank = {name: [each["candidates"][name] for each in figures] for name in figures[0]["candidates"]}
    slowest = {
        name: [max(t) for t in zip(*(each["seconds"] for each in found), strict=True)]
        for name, found in of_rank.items()
    }
    over = table.ratio(slowest, IDEAL)
    rows = [
        {
            "name": name,
            "seconds": statistics.median(slowest[name]),
            "share_of_compute": 1 / over[name],
            "interface_bytes": _bytes(found),
        }
        for name, found in of_rank.items()
    ]
    about = {**dataclasses.asdict(ranks), **dataclasses.asdict(plan), "where": ranks.describe()}
    return {**about, "weights": figures[0]["weights"], "rows": rows}


def _bytes(ranks: Sequence[Mapping[str, Any]]) -> int | None:
    if None in ranks[0]["interface"]:
        return None
    return round(statistics.fmean(statistics.fmean(each["interface"]) for each in ranks))


def show(result: Mapping[str, Any]) -> str:
    """Return the table that people read, under one line that says what was measured."""
    heading = (
        f"{result['where']}, GPT of {result['weights']} weights, batch {result['batch']} x {result['context']}, "
        f"density {result['density']:g}, {result['rounds']} rounds of {result['steps']} steps"
    )
    return f"{heading}\n{table.render(result['rows'], COLUMNS)}"
