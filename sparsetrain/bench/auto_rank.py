"""One rank of `bench auto`: `python -m sparsetrain.bench.auto_rank SPEC.json` writes its figures beside SPEC."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from typing import Any

import torch.distributed as dist

from sparsetrain.bench.auto import AUTO, Plan
from sparsetrain.bench.rank import Way, serve
from sparsetrain.bench.ranks import Place
from sparsetrain.bench.step_rank import once
from sparsetrain.collective.torch_dist import torch_world
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.gradient.planner import Planner

SETTLED_WITHIN = 200  # steps
SEEN = 10  # steps with the settled choice before links change: the planner has to know what steps take


def job_of(plan: Plan, regime: str) -> Job:
    """Return the job that trains with a regime, or with all of them on `auto`."""
    settings = [
        f"model.layers={plan.layers} model.width={plan.width} model.context={plan.context}",
        f"data.context={plan.context} train.batch_size={plan.batch} train.steps=1000000 log.wandb.mode=disabled",
        f"exchange.regime={regime} exchange.every=1 exchange.density={plan.density} exchange.rank={plan.rank}",
        f"exchange.allow=[{','.join(plan.allow)}] exchange.replan={plan.replan}",
        f'exchange.steps_factor={{"sparse":{plan.factor},"lowrank":{plan.factor}}}',
    ]
    if plan.sparsity:
        settings.append(f"masks.method=static masks.sparsity={plan.sparsity}")
    return load_job("text_gpt", tuple(part for line in settings for part in line.split(" ") if part))


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: seconds of a step in each round by candidate, the planner's last decision, the
    number of weights. Collective."""
    prefer_fast_matmul(lambda line: None)
    regimes = [name for name in plan.allow if name != "packed" or plan.sparsity]
    with contextlib.ExitStack() as stack:
        trainers: dict[str, Trainer] = {}
        for name in (*regimes, AUTO):
            state = build(job_of(plan, name), torch_world())
            stack.callback(state.exchange.close)
            trainers[name] = Trainer(state, pathlib.Path(), lambda line: None)
        automatic = trainers[AUTO].state.exchange
        assert automatic.planner is not None
        settle(trainers[AUTO], automatic.planner)
        change = changed(place, trainers[AUTO], automatic.planner, 3 * plan.replan) if place.change else None
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for turn in range(1 + plan.rounds):
            for name, trainer in trainers.items():
                spent, _ = once(trainer.train_step, plan.steps, None)
                if turn:  # the first turn touches memory
                    seconds[name].append(spent)
        weights = sum(parameter.numel() for parameter in trainers[AUTO].state.parameters.values())
        return {
            "seconds": seconds,
            "decision": automatic.planner.decisions[-1].row(),
            "weights": weights,
            "change": change,
        }


def settle(trainer: Trainer, planner: Planner) -> None:
    """Train until the planner has settled, at most SETTLED_WITHIN steps. Collective."""
    for _ in range(SETTLED_WITHIN):
        if planner.settled:
            break
        trainer.train_step()


def changed(place: Place, trainer: Trainer, planner: Planner, most: int) -> dict[str, Any]:
    """Return what the planner took before links changed, and after how many exchanges it had noticed: None, if not
    within `most`. It has settled again then. Collective."""
    for _ in range(SEEN):
        trainer.train_step()
    before, began = planner.decisions[-1], trainer.state.exchange.step
    dist.barrier()
    place.ask_for_change()
    while planner.settled and planner.decisions[-1] is before and trainer.state.exchange.step < began + most:
        trainer.train_step()
    noticed = not planner.settled or planner.decisions[-1] is not before
    exchanges = trainer.state.exchange.step - began
    settle(trainer, planner)
    return {"took_before": before.chosen.name, "noticed_after": exchanges if noticed else None}


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
