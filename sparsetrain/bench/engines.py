"""`bench engines`: what a step sends under torch's engine, FSDP2 and DeepSpeed's stages, dense and sparse."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from sparsetrain.bench import table
from sparsetrain.bench.ranks import Ranks, run

COLUMNS = ("engine", "exchange", "step_ms", "sent_bytes", "of_gradient", "of_dense", "booked")
ENGINES = {
    "torch": "engine=torch",
    "fsdp": "engine=fsdp",
    **{f"deepspeed {stage}": f"engine={{name: deepspeed, stage: {stage}}}" for stage in (0, 1, 2, 3)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: `steps` steps in a row of a GPT, after two that do not count, at a `density`."""

    layers: int = 2
    width: int = 128
    context: int = 64
    batch: int = 4
    density: float = 0.01
    steps: int = 10
    precision: str = "fp32"

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        if min(self.layers, self.width, self.context, self.batch, self.steps) < 1 or self.width % 4:
            raise ValueError("want counts of at least 1, and a width that 4 divides")
        if not 0 < self.density <= 1 or self.precision not in ("fp32", "bf16"):
            raise ValueError("want a density in (0, 1], and fp32 or bf16")


def measure(ranks: Ranks, plan: Plan) -> dict[str, Any]:
    """Return ranks and plan, the number of weights, and a row with COLUMNS for each engine and exchange.

    `sent_bytes` is what the interface of a rank has sent in a step (mean over ranks), `of_gradient` that over the bytes
    of the gradient in fp32, `of_dense` over what the engine sends with a dense exchange, `booked` what the byte meter
    has booked over what the interface has sent. On loopback there are no interfaces of the ranks' own, so the meter's
    bytes stand for them. Raises RankFailed and HostsUnavailable; nothing is left running then.
    """
    figures = run(ranks, "sparsetrain.bench.engines_rank", dataclasses.asdict(plan))
    weights = figures[0]["weights"]
    rows: list[dict[str, Any]] = []
    dense = 0.0
    for same in zip(*(each["rows"] for each in figures), strict=True):
        metered = statistics.fmean(each["metered"] for each in same)
        wires = [each["interface"] for each in same]
        sent = metered if None in wires else statistics.fmean(wires)
        dense = sent if same[0]["exchange"] == "dense" else dense  # it comes before what is compared with it
        rows.append(
            {
                "engine": same[0]["engine"],
                "exchange": same[0]["exchange"],
                "step_ms": 1e3 * statistics.fmean(each["seconds"] for each in same),
                "sent_bytes": sent,
                "of_gradient": sent / (4 * weights),
                "of_dense": sent / dense,
                "booked": metered / sent,
            }
        )
    about = {**dataclasses.asdict(ranks), **dataclasses.asdict(plan), "where": ranks.describe()}
    return {**about, "weights": weights, "rows": rows}


def show(result: Mapping[str, Any]) -> str:
    """Return the table that people read, under one line that says what was measured."""
    heading = (
        f"{result['where']}, GPT of {result['weights']} weights in {result['precision']}, {result['steps']} steps of "
        f"{result['batch']} x {result['context']} a rank, sparse at {result['density']:g}"
    )
    return f"{heading}\n{table.render(result['rows'], COLUMNS)}"
