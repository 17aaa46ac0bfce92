"""A forecast in words and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.config.check import gathers
from sparsetrain.config.job import Job
from sparsetrain.plan.cluster import ClusterPlan
from sparsetrain.plan.forecast import DENSE, Forecast, Way
from sparsetrain.plan.model import Model

WAITS = 0.1  # share of a step that is waiting, below which nothing is worth much
HEADERS = ("way", "loses", "step", "waits", "sent a step", "inside a node", "quicker than dense below", "memory", "run")


def table(found: Forecast, cluster: ClusterPlan) -> str:
    """Return the ways as a table for people."""
    headers = (
        *HEADERS,
        *(("goodput",) if cluster.failures.node_hours else ()),
        *(("price of the run",) if cluster.price else ()),
    )
    rows = [_row(way, cluster) for way in found.ways]
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [headers, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def _row(way: Way, cluster: ClusterPlan) -> tuple[str, ...]:
    even = "everywhere" if way.even_mbit is None else "nowhere" if not way.even_mbit else rate(way.even_mbit)
    cells = [
        way.setting.name,
        "nothing" if way.lossless else "something",
        f"{1e3 * way.step.seconds:.3g} ms",
        f"{1e3 * way.step.exposed_s:.3g} ms",
        f"{way.step.bytes / 1e6:.3g} MB",
        f"{way.step.near / 1e6:.3g} MB" if way.step.near else "-",
        "-" if way.setting == DENSE else even,
        f"{sum(way.memory.values()) / 1e9:.3g} GB",
        hours(way.hours),
    ]
    if cluster.failures.node_hours:
        cells.append(f"{way.goodput.goodput:.2f}")
    if cluster.price:
        cells.append(f"{way.price:,.2f}")
    return tuple(cells)


def heading(job: Job, model: Model, cluster: ClusterPlan, found: Forecast) -> str:
    """Return what was planned, in one line."""
    masked = f", {model.masked:,} masked of which {model.active / model.masked:.1%} stay" if model.masked else ""
    each = f" x {cluster.workers_per_node} workers" if cluster.workers_per_node > 1 else ""
    slowest = max(way.step.seconds - way.step.exposed_s for way in found.ways)
    straggling = f", {1e3 * slowest:.3g} ms of the slowest worker" if slowest > 1.001 * found.compute_s else ""
    paid = f"; a node costs {cluster.price:g} an hour" if cluster.price else ""
    return (
        f"{job.model.name} of {model.weights:,} weights{masked}; {cluster.nodes} nodes{each}, {cluster.network.rate} "
        f"links of {1e3 * cluster.network.latency_s:.3g} ms; {1e3 * found.compute_s:.3g} ms of computing a step"
        f"{straggling}; "
        f"density {job.exchange.density:g}"
        + (f", every {job.exchange.every} steps" if job.exchange.every > 1 else "")
        + paid
    )


def recommendation(job: Job, cluster: ClusterPlan, found: Forecast) -> list[str]:
    """Return what to do, and why, as sentences."""
    chosen = found.chosen
    dense = next(way for way in found.ways if way.setting == DENSE)
    waits = dense.step.exposed_s / dense.step.seconds
    ratio = dense.step.seconds / (chosen.step.seconds * chosen.steps_factor)
    said = []
    if chosen.setting == DENSE and waits < WAITS:
        said.append(f"Train dense: {waits:.0%} of a dense step is waiting, so no compression can gain more than that.")
    elif chosen.setting == DENSE:
        said.append(f"Train dense: it waits for {waits:.0%} of a step, and what compression saves costs as much again.")
    else:
        how = f"exchange.regime={chosen.setting.regime}"
        if chosen.setting.every > 1:
            how += f" exchange.every={chosen.setting.every}"
        if chosen.setting.collective:
            how += f" exchange.collective={chosen.setting.collective}"
        if chosen.setting.group:
            how += f" exchange.collective.group={chosen.setting.group}"
        said.append(
            f"Take {how}: {ratio:.2g} times as quick as dense, which waits for {waits:.0%} of a step; it sends "
            f"{chosen.step.bytes / max(dense.step.bytes, 1.0):.2%} of the bytes."
        )
        if not chosen.lossless and chosen.steps_factor == 1.0:
            said.append(
                "This counts on as many steps to the same loss as dense training takes: exchange.steps_factor says "
                "otherwise where you know (with AdamW, look at exchange.every first)."
            )
    if where := gathers(job):
        said.append(f"{where} gathers dense weights in every step, on top of all this; torch and stage 0 do not.")
    close = [way.setting.name for way in found.ways if way is not chosen and _close(way, chosen)]
    if close:
        said.append(f"Within 5 % of it: {', '.join(close)}.")
    if cluster.memory_gb is not None:
        need = sum(chosen.memory.values()) / 1e9
        verdict = "does not fit" if need > cluster.memory_gb else "fits"
        said.append(
            f"State of {need:.3g} GB a worker {verdict} into {cluster.memory_gb:g} GB (activations come on top)."
        )
    if cluster.failures.node_hours:
        lost = chosen.goodput
        said.append(f"With nodes that fail, {lost.goodput:.0%} of the time is training ({lost.losses} losses).")
    return said


def _close(way: Way, chosen: Way) -> bool:
    return way.step.seconds * way.steps_factor <= 1.05 * chosen.step.seconds * chosen.steps_factor


def grid(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a what-if grid: nodes down, rates across."""
    rates = list(dict.fromkeys(row["mbit"] for row in rows))
    lines = [["nodes", *(rate(each) for each in rates)]]
    for nodes in dict.fromkeys(row["nodes"] for row in rows):
        own = {row["mbit"]: row for row in rows if row["nodes"] == nodes}
        lines.append([str(nodes), *(f"{own[r]['best']} x{own[r]['over_dense']:.2g}" for r in rates)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def rate(mbit: float) -> str:
    """Return a rate for people."""
    return f"{mbit / 1000:.3g} Gbit/s" if mbit >= 1000 else f"{mbit:.3g} Mbit/s"


def hours(value: float) -> str:
    """Return a time for people."""
    if math.isinf(value):
        return "never ends"
    return f"{value:.3g} h" if value >= 1 else f"{60 * value:.3g} min"
