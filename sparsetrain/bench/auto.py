"""`bench auto`: does the planner take the way that turns out best, over links of several rates?

A cell is a rate, a number of hosts and a sparsity of the weights, or the same with links that change their rate when
the planner has settled: then it goes on until it has noticed and settled again. In each, whole training steps of a GPT
take turns: one candidate for every regime, and `auto`, which has settled on one of them before. Regimes that lose
something count as `factor` times the steps, 1 where nothing else is asked for: then the choice is judged by time alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.bench import table
from sparsetrain.bench.ranks import Ranks, run

AUTO = "auto"
DENSE = "dense"
COLUMNS = (
    "rate",
    "ranks",
    "sparsity",
    *(f"{name}_ms" for name in (DENSE, "packed", "sparse", "lowrank", AUTO)),
    "took",
    "best",
    "over_best",
    "over_dense",
    "link_mbit",
)
CHANGED = ("then", "noticed_after", "took_before")  # columns where links have changed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure in a cell: `rounds` turns of `steps` steps by each candidate, `batch` sequences a rank and step;
    `allow`: the regimes; `factor`: the steps to equal loss of those that lose something, over dense's."""

    layers: int = 4
    width: int = 128
    context: int = 64
    batch: int = 8
    density: float = 0.01
    rank: int = 4
    sparsity: float = 0.0
    allow: tuple[str, ...] = (DENSE, "packed", "sparse", "lowrank")
    steps: int = 5
    rounds: int = 5
    replan: int = 50
    factor: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        sizes = (self.layers, self.width, self.context, self.batch, self.rank, self.steps, self.rounds, self.replan)
        if not 0.01 <= self.factor <= 100:
            raise ValueError(f"factor {self.factor:g}: want 0.01 to 100")
        if min(sizes) < 1 or self.width % 4 or not 0 < self.density <= 1 or not 0 <= self.sparsity < 1:
            raise ValueError(
                "want counts of at least 1, a width that 4 divides, a density in (0, 1], a sparsity in [0, 1)"
            )


def cells(rates: Sequence[str], hosts: Sequence[int], sparsities: Sequence[float]) -> list[tuple[str, int, float]]:
    """Return (rate, hosts, sparsity) of every cell."""
    return list(itertools.product(rates, hosts, sparsities))


def measure(ranks: Ranks, plan: Plan) -> dict[str, Any]:
    """Return the row of one cell with COLUMNS, the decision of the planner and the weights of the model.

    Where links change, times are those after it, and CHANGED are there too: the other rate, the exchanges until the
    planner had noticed (None: it had not within three times `replan`), and what it took before. `over_best` and
    `over_dense` are auto's seconds times factor over those of the best regime and of dense, medians over rounds. Raises
    RankFailed, and HostsUnavailable where there can be no hosts; nothing is left running then.
    """
    figures = run(ranks, "sparsetrain.bench.auto_rank", dataclasses.asdict(plan))
    names = list(figures[0]["seconds"])
    slowest = {name: [max(t) for t in zip(*(each["seconds"][name] for each in figures), strict=True)] for name in names}
    medians = {name: statistics.median(times) for name, times in slowest.items()}
    decision = figures[0]["decision"]
    lossy = {each["name"] for each in decision["candidates"] if not each["lossless"]}
    chosen = {AUTO: decision["chosen"]}
    factors = {name: plan.factor if chosen.get(name, name) in lossy else 1.0 for name in names}
    costs = {name: [factors[name] * each for each in times] for name, times in slowest.items()}
    best = min((name for name in names if name != AUTO), key=lambda name: factors[name] * medians[name])
    return {
        "rate": ranks.rate,
        "ranks": ranks.hosts,
        "sparsity": plan.sparsity,
        **{f"{name}_ms": 1e3 * medians[name] for name in names},
        "took": decision["chosen"],
        "best": best,
        "over_best": table.ratio(costs, best)[AUTO],
        "over_dense": table.ratio(costs, DENSE)[AUTO],
        "link_mbit": decision["network"]["gather_rate"] * 8e-6,
        **({"then": ranks.then, **figures[0]["change"]} if ranks.then else {}),
        "why": decision["why"],
        "weights": figures[0]["weights"],
    }


def show(rows: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """Return the table that people read, under one line that says what was measured."""
    heading = (
        f"GPT of {rows[0]['weights']} weights, batch {plan.batch} x {plan.context}, density {plan.density:g}, "
        f"rank {plan.rank}, {plan.rounds} rounds of {plan.steps} steps, factor {plan.factor:g}"
    )
    more = [name for name in CHANGED if name in rows[0]]
    return f"{heading}\n{table.render(rows, (*more, *COLUMNS))}"
