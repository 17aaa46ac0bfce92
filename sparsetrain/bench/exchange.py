"""`bench exchange`: what the mean of a gradient costs over links of a given rate, next to what the wire allows.

A process per host, four candidates that users have today and several of ours, in turns. The hosts share one machine's
processors: with more hosts than cores, what a candidate computes counts against it more than on real machines.
Memory: about 3.3 GB per host at 25 million elements.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.bench import table
from sparsetrain.bench.ranks import Ranks, run
from sparsetrain.config.rate import parse_rate

GOODPUT = 1448 / 1514  # payload in a full packet
COLUMNS = (
    "name",
    "seconds",
    "payload_bytes",
    "interface_bytes",
    "bound_s",
    "ratio_to_bound",
    "predicted_s",
    "speedup_over_fp32",
    "speedup_over_bf16",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: `size` elements of which a share of `density` is sent, `rounds` times by each candidate."""

    size: int = 25_000_000
    density: float = 0.01
    rounds: int = 5

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        if self.rounds < 1 or self.size < 1000 or not 0 < self.density <= 1:
            raise ValueError("want at least 1 round and 1000 elements, and a density in (0, 1]")


def measure(ranks: Ranks, plan: Plan) -> dict[str, Any]:
    """Return ranks and plan, n, the measured seconds of one hop, and a row per candidate with COLUMNS (bytes per rank
    and exchange, mean over ranks).

    Raises RankFailed, and HostsUnavailable where there can be no hosts; nothing is left running then.
    """
    figures = run(ranks, "sparsetrain.bench.rank", dataclasses.asdict(plan))
    latency = max(each["latency_s"] for each in figures)
    names = list(figures[0]["candidates"])
    of_rank = {name: [each["candidates"][name] for each in figures] for name in names}
    slowest = {name: [max(t) for t in zip(*(r["seconds"] for r in of_rank[name]), strict=True)] for name in names}
    over = {base: table.ratio(slowest, base) for base in ("dense fp32", "dense bf16")}
    rows = [row(name, of_rank[name], parse_rate(ranks.rate), latency) for name in names]
    for each in rows:
        each["speedup_over_fp32"] = 1 / over["dense fp32"][each["name"]]
        each["speedup_over_bf16"] = 1 / over["dense bf16"][each["name"]]
    about = {**dataclasses.asdict(ranks), **dataclasses.asdict(plan), "where": ranks.describe()}
    return {**about, "n": figures[0]["n"], "latency_s": latency, "rows": rows}


def row(name: str, ranks: Sequence[Mapping[str, Any]], rate: int | None, latency: float) -> dict[str, Any]:
    """Return one candidate's row, without the speed-ups, from the figures of all ranks.

    The bound is the time that the received payload takes on the wire; what all ranks receive is what all have sent.
    The prediction is that of the candidate's formula, with `latency` per message and no time to compute.
    """
    seconds = max(statistics.median(each["seconds"]) for each in ranks)
    payload = statistics.fmean(statistics.fmean(each["payload"]) for each in ranks)
    counted = None if None in ranks[0]["interface"] else [statistics.fmean(each["interface"]) for each in ranks]
    per_byte = None if rate is None else 8 / (rate * GOODPUT)
    bound = None if per_byte is None else payload * per_byte
    return {
        "name": name,
        "seconds": seconds,
        "payload_bytes": round(payload),
        "interface_bytes": None if counted is None else round(statistics.fmean(counted)),
        "bound_s": bound,
        "ratio_to_bound": None if bound is None else seconds / bound,
        "predicted_s": None if per_byte is None else ranks[0]["bytes"] * per_byte + ranks[0]["messages"] * latency,
    }


def show(result: Mapping[str, Any]) -> str:
    """Return the table that people read, under one line that says what was measured."""
    heading = (
        f"{result['where']}, {result['n']} elements, density {result['density']:g}, {result['rounds']} rounds, "
        f"{result['latency_s'] * 1e6:.0f} us a hop"
    )
    return f"{heading}\n{table.render(result['rows'], COLUMNS)}"
