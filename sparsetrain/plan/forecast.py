"""What a job would cost on a cluster: seconds, bytes, memory, hours, for every way that gradients can take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsetrain.config.job import Exchange, Job
from sparsetrain.gradient.decision import Candidate, choose
from sparsetrain.plan.cluster import ClusterPlan, Stragglers
from sparsetrain.plan.fabric import Fabric, Level, Times
from sparsetrain.plan.failures import Outcome, follow
from sparsetrain.plan.fill import Fill
from sparsetrain.plan.memory import memory_of
from sparsetrain.plan.model import Model
from sparsetrain.plan.step import Beside, Profile, Setting, Step, simulate

SPARSE = ("allgather", "split_reduce", "ok_topk", "gtopk", "recursive_doubling", "hierarchical")
DENSE = Setting(regime="dense")
GRID = tuple(1e5 * 1.1**n for n in range(145))  # rates (bytes a second) at which a break-even point may lie


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way, and what comes of it: `even_mbit` is the rate of the network below which it is quicker than dense (0:
    nowhere, None: everywhere), `hours` of the whole run with its steps to the same loss, `price` of that."""

    setting: Setting
    step: Step
    lossless: bool
    steps_factor: float
    even_mbit: float | None
    memory: dict[str, float]
    goodput: Outcome
    hours: float
    price: float

    def row(self) -> dict[str, Any]:
        """Return what a table shows."""
        return {
            "way": self.setting.name,
            "regime": self.setting.regime,
            "lossless": self.lossless,
            "step_ms": 1e3 * self.step.seconds,
            "exposed_ms": 1e3 * self.step.exposed_s,
            "mb_a_step": self.step.bytes / 1e6,
            "near_mb": self.step.near / 1e6,
            "even_mbit": self.even_mbit,
            "memory_gb": sum(self.memory.values()) / 1e9,
            "steps_factor": self.steps_factor,
            "goodput": self.goodput.goodput,
            "hours": self.hours,
            "price": self.price,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """All ways, best first by hours, which is recommended, and why."""

    ways: tuple[Way, ...]
    chosen: Way
    why: str
    compute_s: float
    workers: int


def settings_of(exchange: Exchange, masked: bool, groups: Sequence[int] = ()) -> list[Setting]:
    """Return the ways that there are, dense training with an exchange in every step first; `packed` only where
    something is masked, since else it is dense; hierarchical also with `groups` of so many ranks."""
    names = ("packed", "allgather") if exchange.sparsifier.name == "randomk" else SPARSE
    regimes = ["dense", *(["packed"] if masked else []), "lowrank"]
    ways = [
        *(Setting(regime=regime, every=exchange.every) for regime in regimes),
        *(Setting(regime="sparse", collective=name, every=exchange.every) for name in names),
        *(Setting(regime="sparse", collective=SPARSE[-1], every=exchange.every, group=group) for group in groups),
    ]
    return ways if DENSE in ways else [DENSE, *ways]


def forecast(job: Job, model: Model, cluster: ClusterPlan, profile: Profile, fill: Fill) -> Forecast:
    """Return what the job would cost on the cluster."""
    fabric = cluster.fabric()
    dense: dict[float, float] = {}  # seconds by rate
    ways = []
    for setting in settings_of(job.exchange, model.masked > 0, cluster.groups()):
        step = step_of(setting, job, model, cluster, fabric, profile, fill)
        factor = setting.steps_factor(job.exchange)
        outcome = follow(
            round(job.train.steps * factor),
            cluster.nodes,
            step.seconds,
            cluster.failures,
            job.recovery.memory,
            job.checkpoint.every,
            job.seed,
        )
        ways.append(
            Way(
                setting=setting,
                step=step,
                lossless=setting.lossless,
                steps_factor=factor,
                even_mbit=break_even(setting, job, model, cluster, profile, fill, dense),
                memory=memory_of(job, model, setting.regime),
                goodput=outcome,
                hours=outcome.hours,
                price=outcome.hours * cluster.nodes * cluster.price,
            )
        )
    candidates = [
        Candidate(
            name=way.setting.name,
            settings=(),
            lossless=way.lossless,
            steps_factor=way.steps_factor,
            bytes=way.step.bytes,
            predicted_s=way.step.seconds,
        )
        for way in ways
    ]
    best, why = choose(candidates)
    chosen = next(way for way in ways if way.setting.name == best.name)
    ordered = tuple(sorted(ways, key=lambda way: way.step.seconds * way.steps_factor))
    return Forecast(ways=ordered, chosen=chosen, why=why, compute_s=profile.compute_s, workers=cluster.workers)


def step_of(
    setting: Setting, job: Job, model: Model, cluster: ClusterPlan, fabric: Fabric, profile: Profile, fill: Fill
) -> Step:
    """Return the step of one way."""
    beside = Beside(
        compute=computing(profile.compute_s, fabric.ranks, cluster.stragglers, job.seed),
        overlap=job.exchange.overlap,
        spare=cluster.spare,
        group=cluster.workers_per_node,
    )
    return simulate(setting, model, job.exchange, fabric, profile, fill, beside)


def computing(seconds: float, ranks: int, stragglers: Stragglers, seed: int) -> Times:
    """Return how long each rank computes in a step."""
    draw = np.random.default_rng(seed)
    each = np.full(ranks, seconds)
    if stragglers.jitter:
        each *= np.exp(draw.normal(0.0, stragglers.jitter, ranks))
    slow = round(stragglers.share * ranks)
    each[draw.permutation(ranks)[:slow]] *= stragglers.factor
    return each


def break_even(
    setting: Setting,
    job: Job,
    model: Model,
    cluster: ClusterPlan,
    profile: Profile,
    fill: Fill,
    dense: dict[float, float],
) -> float | None:
    """Return the rate (Mbit/s of a node's link) below which a way's steps, times what they count, are shorter than
    dense's: 0 where that is nowhere, None where it is everywhere. `dense` remembers dense's seconds by rate."""
    if setting == DENSE:
        return None

    def gains(rate: float) -> bool:
        fabric = with_rate(cluster, rate)
        if rate not in dense:
            dense[rate] = step_of(DENSE, job, model, cluster, fabric, profile, fill).seconds
        own = step_of(setting, job, model, cluster, fabric, profile, fill).seconds
        return own * setting.steps_factor(job.exchange) < dense[rate]

    low, high = 0, len(GRID) - 1
    if gains(GRID[high]):
        return None
    if not gains(GRID[low]):
        return 0.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if gains(GRID[middle]) else (low, middle)
    return GRID[low] * 8e-6


def with_rate(cluster: ClusterPlan, rate: float) -> Fabric:
    """Return the cluster's fabric with another rate (bytes a second) of the nodes' links; levels above keep theirs."""
    fabric = cluster.fabric()
    number = 1 if cluster.workers_per_node > 1 else 0
    levels = [
        Level(name=lv.name, members=lv.members, rate=rate if at == number else lv.rate, latency_s=lv.latency_s)
        for at, lv in enumerate(fabric.levels)
    ]
    return Fabric(levels, fabric.ranks)


def what_if(
    job: Job,
    model: Model,
    cluster: ClusterPlan,
    profile: Profile,
    fill: Fill,
    rates: Sequence[float],
    nodes: Sequence[int],
) -> list[dict[str, Any]]:
    """Return a row for each rate (bytes a second) of the nodes' links and number of nodes: the quickest way, and how
    many times as quick as dense its training is."""
    rows = []
    for count in nodes:
        there = dataclasses.replace(cluster, nodes=count)
        for rate in rates:
            fabric = with_rate(there, rate)
            scores = {}
            for setting in settings_of(job.exchange, model.masked > 0):
                seconds = step_of(setting, job, model, there, fabric, profile, fill).seconds
                scores[setting.name] = seconds * setting.steps_factor(job.exchange)
            best = min(scores, key=scores.__getitem__)
            rows.append(
                {
                    "nodes": count,
                    "mbit": rate * 8e-6,
                    "best": best,
                    "over_dense": scores[DENSE.name] / scores[best],
                    "dense_ms": 1e3 * scores[DENSE.name],
                    "best_ms": 1e3 * scores[best],
                }
            )
    return rows
