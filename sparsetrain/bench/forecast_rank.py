"""One rank of `bench forecast`: `python -m sparsetrain.bench.forecast_rank SPEC.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
from typing import Any

from sparsetrain.bench.forecast import IDEAL, Plan, jobs
from sparsetrain.bench.rank import Way, serve
from sparsetrain.bench.ranks import Place
from sparsetrain.bench.simulation_rank import costs_here
from sparsetrain.bench.step_rank import Step, once
from sparsetrain.collective.torch_dist import torch_world
from sparsetrain.collective.world import World
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.gradient.calibration import measure_network
from sparsetrain.plan.compute import codec_of


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: the network, and seconds of a step in each round by way. Collective."""
    prefer_fast_matmul(lambda line: None)
    transport = way()
    network, codec = dataclasses.asdict(measure_network(transport)), codec_of(next(iter(jobs(plan).values())))
    costs = costs_here(transport, network, codec, plan.density)
    with contextlib.ExitStack() as stack:
        steps: dict[str, Step] = {}
        for name, job in jobs(plan).items():
            # The hosts are namespaces of one machine, and have its name.
            state = build(job, dataclasses.replace(torch_world(), node=f"host{place.rank}"))
            stack.callback(state.exchange.close)
            steps[name] = Trainer(state, pathlib.Path(), lambda line: None).train_step
        alone = build(next(iter(jobs(plan).values())), World())
        stack.callback(alone.exchange.close)
        steps[IDEAL] = Trainer(alone, pathlib.Path(), lambda line: None).train_step
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(1 + plan.rounds):
            for name, step in steps.items():
                spent, _ = once(step, plan.steps, None)
                if turn:  # the first turn touches memory
                    seconds[name].append(spent)
    return {"network": network, "costs": dataclasses.asdict(costs), "seconds": seconds}


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
