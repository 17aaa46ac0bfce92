"""What lost nodes cost: a run followed event by event, from one loss to the next."""

from __future__ import annotations

import dataclasses
import heapq
import math

import numpy as np

from sparsetrain.plan.cluster import Failures

HOUR = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """`goodput`: the share of the time that a run without losses would have taken; `losses` of nodes meanwhile;
    `hours` to the end, infinite where it does not come."""

    goodput: float
    losses: int
    hours: float


def follow(
    steps: int,
    nodes: int,
    step_s: float,
    failures: Failures,
    memory: bool,
    checkpoint_every: int,
    seed: int = 0,
    patience: float = 50.0,
) -> Outcome:
    """Return what becomes of `steps` steps of `step_s` seconds on `nodes` nodes; fewer take as long for each.

    Every node fails by itself, after times that are exponentially distributed. With `memory` the survivors go on after
    `recovery_s` with a node less, and with all again when another has come; without it all wait for that one and begin
    anew from the last checkpoint. Steps count for as much as they train: n of N nodes do n/N of a step. `patience`:
    how many times as long as without losses is waited for the end.
    """
    draw = np.random.default_rng(seed)
    whole_s = steps * step_s
    if not failures.node_hours:
        return Outcome(goodput=1.0, losses=0, hours=whole_s / HOUR)
    mean = failures.node_hours * HOUR
    events = [(draw.exponential(mean), node, "lost") for node in range(nodes)]
    heapq.heapify(events)
    now, done, saved, alive, losses = 0.0, 0.0, 0.0, nodes, 0
    while now < patience * whole_s:
        rate = alive / nodes / step_s
        at, node, kind = events[0]
        ends = now + (steps - done) / rate
        if ends <= at:
            return Outcome(goodput=whole_s / ends, losses=losses, hours=ends / HOUR)
        if at > now:  # else it happened while the run was standing
            done += (at - now) * rate
            now = at
        heapq.heappop(events)
        if checkpoint_every:
            saved = max(saved, done - done % checkpoint_every)
        if kind == "back":
            alive += 1
            now += failures.recovery_s if memory else 0.0
            heapq.heappush(events, (at + draw.exponential(mean), node, "lost"))
            continue
        losses += 1
        if memory and alive > 1:
            alive -= 1
            now += failures.recovery_s
            heapq.heappush(events, (now + failures.replaced_s, node, "back"))
        else:
            done = saved
            now += failures.restart_s + failures.replaced_s
            heapq.heappush(events, (now + draw.exponential(mean), node, "lost"))
    return Outcome(goodput=0.0, losses=losses, hours=math.inf)
