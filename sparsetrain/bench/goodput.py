"""`bench goodput`: what is left of the time as ranks are added and their nodes fail, in memory and from checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.bench import scaling
from sparsetrain.bench.table import render
from sparsetrain.plan.cluster import Failures
from sparsetrain.plan.costs import Costs
from sparsetrain.plan.failures import follow
from sparsetrain.plan.fill import Fill

COLUMNS = ("node_hours", "ranks", "exchange", "exchange_ms", "losses", "in_memory", "checkpoints", "sparse", "dense")
TOGETHER = 8  # ranks of a node where a fabric has nodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """`steps` of `compute_s` seconds and an exchange each, on nodes that fail after `node_hours` in the mean; a
    checkpoint every `checkpoint` steps."""

    node_hours: tuple[float, ...] = (10_000.0, 1_000.0)
    compute_s: float = 0.5
    steps: int = 50_000
    checkpoint: int = 500
    failures: Failures = dataclasses.field(default_factory=Failures)

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        if not self.node_hours or not all(0 < hours < float("inf") for hours in self.node_hours):
            raise ValueError("want node hours above 0")
        if not 0 < self.compute_s < float("inf") or self.steps < 1 or self.checkpoint < 1:
            raise ValueError("want seconds above 0, at least 1 step, and at least 1 step between checkpoints")


def measure(
    plan: Plan, links: scaling.Plan, fill: Fill | None = None, costs: Costs | None = None
) -> list[dict[str, Any]]:
    """Return a row per hours and ranks: the share of the time that is training, by both ways to recover, with the
    quickest exchange; and how many single ranks without failures it trains as fast as, with it and with the dense one,
    in memory."""
    rows = []
    scaled = scaling.measure(links, fill, costs)
    for hours in plan.node_hours:
        failures = dataclasses.replace(plan.failures, node_hours=hours)
        for each in scaled:
            ranks, best = each["ranks"], each["best"]
            nodes = -(-ranks // TOGETHER) if links.fabric == "two_level" else ranks
            step_s = {name: plan.compute_s + each[name] / 1e3 for name in (best, "dense")}
            left = {
                (name, memory): follow(plan.steps, nodes, step_s[name], failures, memory, plan.checkpoint)
                for name in step_s
                for memory in (True, False)
            }
            worth = {name: ranks * plan.compute_s / step_s[name] * left[name, True].goodput for name in step_s}
            rows.append(
                {
                    "node_hours": hours,
                    "ranks": ranks,
                    "exchange": best,
                    "exchange_ms": each[best],
                    "losses": left[best, True].losses,
                    "in_memory": left[best, True].goodput,
                    "checkpoints": left[best, False].goodput,
                    "sparse": worth[best],
                    "dense": worth["dense"],
                }
            )
    return rows


def show(rows: Sequence[Mapping[str, Any]], plan: Plan, links: scaling.Plan) -> str:
    """Return the table that people read, under one line that says what was simulated."""
    fail = plan.failures
    heading = (
        f"simulated, {links.fabric}: {plan.steps} steps of {plan.compute_s:g} s and the quickest exchange of "
        f"{links.size} elements, density {links.density:g}, {links.rate} links; a lost node takes {fail.recovery_s:g} "
        f"s in memory, {fail.restart_s:g} s and steps since one of the checkpoints, every {plan.checkpoint}, and "
        f"is replaced after {fail.replaced_s:g} s; share of the time that is training, single ranks' worth"
    )
    return f"{heading}\n{render(rows, COLUMNS)}"
