"""`bench forecast`: what `sparsetrain plan` says of a training step, next to the steps of real ranks.

Whole training steps of a GPT in every regime and by every collective, in turns, over links of several rates between
network namespaces. The plan gets the seconds of the same step of a rank alone, all of them at work, what a short
measurement says of the network, and what the processor takes for each part of an exchange; where ranks share cores it
takes them so much longer.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.bench import table
from sparsetrain.bench.auto import Plan as Base
from sparsetrain.bench.auto_rank import job_of
from sparsetrain.bench.ranks import Ranks
from sparsetrain.bench.simulation import costs_of, errors, over
from sparsetrain.config.job import Job
from sparsetrain.config.load import apply_overrides, parse, to_tree
from sparsetrain.plan.cluster import Stragglers
from sparsetrain.plan.compute import codec_of
from sparsetrain.plan.fabric import flat
from sparsetrain.plan.fill import Random
from sparsetrain.plan.forecast import computing, settings_of
from sparsetrain.plan.model import model_of
from sparsetrain.plan.step import Beside, Profile, Setting, simulate

COLUMNS = ("rate", "ranks", "way", "measured_ms", "planned_ms", "error")
IDEAL = "compute only"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Base):
    """What to measure, as `bench auto` does, with weights that are masked: `packed` is one of the ways."""

    sparsity: float = 0.5
    steps: int = 4
    rounds: int = 5


def jobs(plan: Plan) -> dict[str, Job]:
    """Return a job for each way, by its name."""
    found = {}
    for setting in ways(plan):
        job = job_of(plan, setting.regime)
        if setting.collective:
            job = parse(apply_overrides(to_tree(job), (f"exchange.collective={setting.collective}",)))
        found[setting.name] = job
    return found


def ways(plan: Plan) -> list[Setting]:
    """Return the ways that are compared."""
    return settings_of(job_of(plan, "dense").exchange, plan.sparsity > 0)


def measure(ranks: Sequence[Ranks], plan: Plan) -> list[dict[str, Any]]:
    """Return a row with COLUMNS for each way and cell, and which were chosen. Raises RankFailed, and HostsUnavailable
    where there can be no hosts; nothing is left running then."""
    return over(ranks, "sparsetrain.bench.forecast_rank", plan, compare)


def compare(cell: Ranks, figures: Sequence[Mapping[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of one cell."""
    job = job_of(plan, "sparse")
    codec = codec_of(job)
    cores = len(os.sched_getaffinity(0))
    shared = max(1.0, cell.hosts / cores)
    slowest = {
        name: [max(t) for t in zip(*(each["seconds"][name] for each in figures), strict=True)]
        for name in figures[0]["seconds"]
    }
    medians = {name: statistics.median(times) for name, times in slowest.items()}
    costs = costs_of(figures).scaled(shared)
    profile = Profile(compute_s=medians[IDEAL], costs=costs, codec=codec)
    model, network = model_of(job), figures[0]["network"]
    spare = min(1.0, max(0.0, cores / cell.hosts - 1.0))
    beside = Beside(compute=computing(profile.compute_s, cell.hosts, Stragglers(), 0), spare=spare)
    rows = []
    for setting in ways(plan):
        fabric = flat(cell.hosts, network["gather_rate"], network["latency_s"])
        planned = simulate(setting, model, job.exchange, fabric, profile, Random(), beside).seconds
        measured = medians[setting.name]
        rows.append(
            {
                "rate": cell.rate,
                "ranks": cell.hosts,
                "way": setting.name,
                "measured_ms": 1e3 * measured,
                "planned_ms": 1e3 * planned,
                "error": planned / measured - 1.0,
            }
        )
    return rows


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each cell which way the plan takes, and how it does against the best that was measured."""
    lines = []
    for cell in dict.fromkeys((row["rate"], row["ranks"]) for row in rows):
        own = [row for row in rows if (row["rate"], row["ranks"]) == cell]
        taken = min(own, key=lambda row: row["planned_ms"])
        best = min(own, key=lambda row: row["measured_ms"])
        lost = taken["measured_ms"] / best["measured_ms"] - 1.0
        lines.append(f"{cell[0]}, {cell[1]} ranks: plan takes {taken['way']}, best is {best['way']}: {lost:.1%} behind")
    return lines


def show(rows: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """Return the table that people read, under one line that says what was measured."""
    median, tenth = errors(rows)
    heading = (
        f"GPT of {plan.layers} x {plan.width}, batch {plan.batch} x {plan.context}, density {plan.density:g}, weights "
        f"{plan.sparsity:.0%} sparse, {plan.rounds} rounds of {plan.steps} steps: error {median:.1%} in the median, "
        f"{tenth:.1%} at the 90th percentile"
    )
    return "\n".join([heading, table.render(rows, COLUMNS), *verdicts(rows)])
