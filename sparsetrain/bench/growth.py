"""`bench growth`: what RigL grows from candidates, beside what the dense mean gradient grows, on a GPT in training.

Ranks train together, each on its own batches. At some updates of the run every rule is asked with the same local
gradients, for batches of several sizes: small ones are noisier, and ranks' candidates then have less in common.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from sparsetrain.bench import table
from sparsetrain.bench.ranks import Ranks, run

DENSE = "dense"
COLUMNS = ("step", "loss", "drop_fraction", "grown", "batch", "rule", "proposed", "recall", "bytes", "of_dense")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: `steps` steps of `batch` sequences a rank, an update each `every`, `points` of which are looked
    at with batches of `batches` sequences; `shares` are of the dense rule's bytes."""

    layers: int = 4
    width: int = 128
    context: int = 64
    batch: int = 8
    sparsity: float = 0.9
    steps: int = 400
    every: int = 20
    points: int = 5
    batches: tuple[int, ...] = (4, 16, 64)
    shares: tuple[float, ...] = (0.02, 0.03, 0.045, 0.06)

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        counts = (self.layers, self.width, self.context, self.batch, self.steps, self.every, *self.batches)
        if min(counts) < 1 or self.width % 4 or not self.batches or not self.shares:
            raise ValueError("want counts of at least 1, a width that 4 divides, a batch and a share at least")
        if self.points < 2 or not 0 < self.sparsity < 1 or not all(0 < share <= 1 for share in self.shares):
            raise ValueError("want at least 2 points, a sparsity in (0, 1), shares in (0, 1]")


def measure(ranks: Ranks, plan: Plan) -> dict[str, Any]:
    """Return ranks and plan, the numbers of weights, and a row with COLUMNS for each update, batch and rule.

    `proposed` is how many times as many places each rank proposes as are grown, `recall` the share of what the dense
    rule grows that this rule grows too, `bytes` what a rank sends for it (mean), `of_dense` that over the dense rule's.
    Raises RankFailed and HostsUnavailable; nothing is left running then.
    """
    figures = run(ranks, "sparsetrain.bench.growth_rank", dataclasses.asdict(plan))
    rows: list[dict[str, Any]] = []
    dense = 0.0
    for same in zip(*(each["rows"] for each in figures), strict=True):
        sent = statistics.fmean(each["bytes"] for each in same)
        dense = sent if same[0]["rule"] == DENSE else dense  # it comes before those that are compared with it
        rows.append({**same[0], "bytes": sent, "of_dense": sent / dense})
    about = {**dataclasses.asdict(ranks), **dataclasses.asdict(plan), "where": ranks.describe()}
    return {**about, "weights": figures[0]["weights"], "masked": figures[0]["masked"], "rows": rows}


def show(result: Mapping[str, Any]) -> str:
    """Return the table that people read, under one line that says what was measured."""
    heading = (
        f"{result['where']}, GPT of {result['weights']} weights, {result['masked']} of them masked, sparsity "
        f"{result['sparsity']:g}, {result['steps']} steps of {result['batch']} x {result['context']} a rank"
    )
    return f"{heading}\n{table.render(result['rows'], COLUMNS)}"
