"""One rank of `bench engines`: `python -m sparsetrain.bench.engines_rank N.json` writes its figures to N.figures."""

from __future__ import annotations

import pathlib
import sys
import time
from typing import Any

from sparsetrain.bench.engines import ENGINES, Plan
from sparsetrain.bench.rank import Way, sent_bytes, serve
from sparsetrain.bench.ranks import Place
from sparsetrain.collective.torch_dist import torch_world
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer

SETTLING = 2  # steps in which DeepSpeed lays its buffers out


def job_of(plan: Plan, engine: str, exchange: str) -> Job:
    """Return the job whose steps are counted."""
    settings = (
        f"model.layers={plan.layers} model.width={plan.width} model.context={plan.context} "
        f"data.context={plan.context} train.batch_size={plan.batch} train.steps={plan.steps + SETTLING} "
        f"train.precision={plan.precision} exchange.every=1 exchange.regime={exchange} exchange.values=fp32 "
        f"exchange.density={plan.density} exchange.warmup=0 optimizer.name=adamw log.wandb.mode=disabled"
    )
    return load_job("text_gpt", (*settings.split(), "masks=null", ENGINES[engine]))


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: number of weights, and a row for each engine and exchange. Collective."""
    prefer_fast_matmul(lambda line: None)
    rows: list[dict[str, Any]] = []
    weights = 0
    for engine in ENGINES:
        for exchange in ("dense", "sparse"):
            trainer = Trainer(build(job_of(plan, engine, exchange), torch_world()), pathlib.Path(), lambda line: None)
            with trainer.state.engine.whole():
                weights = sum(parameter.numel() for parameter in trainer.state.parameters.values())
            rows.append({"engine": engine, "exchange": exchange, **steps(trainer, plan.steps, place.interface)})
            trainer.state.close()
    return {"weights": weights, "rows": rows}


def steps(trainer: Trainer, count: int, interface: str | None) -> dict[str, float | None]:
    """Return seconds, interface and meter bytes of one step, mean over `count` in a row. Collective."""
    transport = trainer.world.transport
    for _ in range(SETTLING):
        trainer.train_step()
    transport.barrier()
    wire, booked, began = sent_bytes(interface), transport.meter.total, time.perf_counter()
    for _ in range(count):
        trainer.train_step()
    seconds, metered = time.perf_counter() - began, transport.meter.total - booked
    transport.barrier()  # what a rank sends counts when its peers have it
    now = sent_bytes(interface)
    counted = None if wire is None or now is None else (now - wire) / count
    return {"seconds": seconds / count, "metered": metered / count, "interface": counted}


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
