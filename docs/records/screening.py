"""The experiments behind the defaults: many short runs one after the other on the same two real ranks.

    torchrun --standalone --nproc-per-node 2 docs/records/screening.py FILE EXPERIMENT [SEED ...]
    python docs/records/screening.py FILE

The first trains what FILE does not hold yet and appends one line of JSON a run: seed 0 every setting of an experiment,
other seeds its FINALISTS. The second prints FILE as a table. Bytes are what rank 0 put on the wire for gradients.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from sparsetrain.bench.table import render
from sparsetrain.collective.torch_dist import TorchTransport
from sparsetrain.collective.world import World
from sparsetrain.config.load import load_job
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.trainer import NotFinite, train
from sparsetrain.worker.main import seed_all

DENSE = "exchange.regime=dense exchange.every=1 exchange.values=fp32 exchange.error_feedback=none"
STEP = "exchange.every=1 exchange.density=0.01 exchange.warmup=0"
WARM = f"{STEP} exchange.warmup=0.15"
SMALL = "text_gpt model.layers=2 model.context=64 data.context=64 train.evaluate_batches=40"


def adamw(rate: float) -> str:
    return f"optimizer.name=adamw optimizer.learning_rate={rate}"


def local(every: int, density: float) -> str:
    return f"exchange.every={every} exchange.density={density}"


def sgd(rate: float, momentum: float = 0.9) -> str:
    return f"optimizer.name=sgd optimizer.learning_rate={rate} optimizer.momentum={momentum}"


def optimizers() -> Iterator[tuple[str, str]]:
    """Every-step exchange: which error feedback for which optimizer, at which learning rate."""
    kinds = {
        "dense": DENSE,
        "ef14": STEP,
        "ef14 warm-up": WARM,
        "ef14 warm-up per tensor": f"{WARM} exchange.bucket_elements=1",
        "ef21": f"{STEP} exchange.error_feedback=ef21",
        "ef21 warm-up": f"{WARM} exchange.error_feedback=ef21",
        "ef21_sgdm warm-up": f"{WARM} exchange.error_feedback=ef21_sgdm",
    }
    for name, settings in kinds.items():
        for rate in (1e-3, 3e-3, 1e-2):
            yield f"adamw {rate:g} {name}", f"{settings} {adamw(rate)}"
        for rate in (0.01, 0.03, 0.1, 0.3):
            yield f"sgd {rate:g} {name}", f"{settings} {sgd(rate)}"
    for rate in (0.1, 0.3, 1.0):
        dgc = f"exchange.error_feedback=dgc {sgd(rate, 0.0)}"
        yield f"sgd {rate:g} dgc warm-up", f"{WARM} {dgc}"
        yield f"sgd {rate:g} dgc", f"{STEP} {dgc}"
        yield f"sgd {rate:g} dgc warm-up per tensor", f"{WARM} {dgc} exchange.bucket_elements=1"
        yield f"sgd {rate:g} dgc without masking", f"{WARM} {dgc} exchange.error_feedback.masking=false"

    for rate in (2e-3, 5e-3):
        yield f"adamw {rate:g} dense", f"{DENSE} {adamw(rate)}"
        for every, density in ((5, 0.05), (10, 0.1)):
            yield f"adamw {rate:g} H={every} d={density:g}", f"{local(every, density)} {adamw(rate)}"
    for rate in (0.03, 0.1):
        yield f"sgd {rate:g} H=5 d=0.05", f"{local(5, 0.05)} {sgd(rate)}"


def local_steps() -> Iterator[tuple[str, str]]:
    """H local steps of AdamW: how many, how dense, which outer optimizer."""
    for rate in (1e-3, 2e-3, 3e-3, 5e-3, 1e-2):
        yield f"dense {rate:g}", f"{DENSE} {adamw(rate)}"
        for every, density in ((5, 0.05), (10, 0.1), (10, 0.01), (20, 0.2), (20, 0.02), (40, 0.2)):
            yield f"H={every} d={density:g} {rate:g}", f"{local(every, density)} {adamw(rate)}"
    for every, density in ((10, 0.1), (20, 0.2)):
        for outer_rate, momentum in ((1.0, 0.3), (0.7, 0.5), (0.7, 0.9), (0.4, 0.9)):
            yield (
                f"H={every} d={density:g} 0.005 outer {outer_rate:g} {momentum:g}",
                f"{local(every, density)} {adamw(5e-3)} "
                f"exchange.outer.learning_rate={outer_rate} exchange.outer.momentum={momentum}",
            )


def long() -> Iterator[tuple[str, str]]:
    """The best of both, for longer."""
    for rate in (1e-3, 2e-3, 3e-3):
        yield f"dense adamw {rate:g}", f"{DENSE} {adamw(rate)}"
    for rate in (2e-3, 3e-3, 5e-3):
        for every, density in ((5, 0.05), (10, 0.1), (10, 0.01)):
            yield f"H={every} d={density:g} adamw {rate:g}", f"{local(every, density)} {adamw(rate)}"
    yield "ef14 warm-up adamw 0.001", f"{WARM} {adamw(1e-3)}"
    for rate in (0.03, 0.1):
        yield f"dense sgd {rate:g}", f"{DENSE} {sgd(rate)}"
    for rate in (0.1, 0.3):
        yield f"dgc sgd {rate:g}", f"{STEP} exchange.error_feedback=dgc {sgd(rate, 0.0)}"


def images() -> Iterator[tuple[str, str]]:
    """The preset of images, without masks: SGD, every step."""
    for rate in (0.03, 0.1, 0.3):
        yield f"dense {rate:g}", f"{DENSE} {sgd(rate)}"
        for density in (0.01, 0.001):
            sparse = f"exchange.every=1 exchange.density={density}"
            yield f"ef14 {density:g} {rate:g}", f"{sparse} exchange.warmup=0 {sgd(rate)}"
            yield f"ef14 warm-up {density:g} {rate:g}", f"{sparse} exchange.warmup=0.15 {sgd(rate)}"
            dgc = f"exchange.error_feedback=dgc {sgd(rate, 0.0)}"
            yield f"dgc {density:g} {rate:g}", f"{sparse} exchange.warmup=0 {dgc}"


FINALISTS: dict[str, set[str]] = {
    "optimizers": {
        *("adamw 0.001 dense", "adamw 0.002 dense", "adamw 0.002 H=5 d=0.05", "adamw 0.01 ef14"),
        *("adamw 0.001 ef14 warm-up", "adamw 0.01 ef14 warm-up per tensor"),
        *("adamw 0.01 ef21", "adamw 0.01 ef21 warm-up", "adamw 0.001 ef21_sgdm warm-up"),
        *("sgd 0.03 dense", "sgd 0.03 ef14", "sgd 0.03 ef14 warm-up", "sgd 0.03 ef14 warm-up per tensor"),
        *("sgd 0.03 ef21", "sgd 0.01 ef21 warm-up", "sgd 0.1 ef21_sgdm warm-up"),
        *("sgd 0.3 dgc", "sgd 0.3 dgc warm-up", "sgd 0.3 dgc without masking", "sgd 0.3 dgc warm-up per tensor"),
        *("adamw 0.005 H=5 d=0.05", "adamw 0.005 H=10 d=0.1", "sgd 0.1 H=5 d=0.05"),
    },
    "local": {
        *("dense 0.001", "dense 0.002", "dense 0.003", "H=5 d=0.05 0.003", "H=5 d=0.05 0.005"),
        *("H=10 d=0.1 0.003", "H=10 d=0.1 0.005", "H=10 d=0.01 0.005"),
    },
    "long": {"dense adamw 0.002", "dense adamw 0.003", "H=5 d=0.05 adamw 0.003", "H=10 d=0.01 adamw 0.005"},
    "images": {
        *("dense 0.1", "ef14 0.01 0.1", "ef14 0.001 0.1", "dgc 0.01 0.3", "dgc 0.001 0.3"),
        *("ef14 warm-up 0.01 0.1", "ef14 warm-up 0.001 0.1"),
    },
}


EXPERIMENTS = {
    "optimizers": (optimizers, f"{SMALL} train.steps=240"),
    "local": (local_steps, f"{SMALL} train.steps=400"),
    "long": (long, f"{SMALL} train.steps=2000"),
    "images": (images, "fashion_mnist masks=null train.steps=1000 train.evaluate_batches=78"),
}


def run(path: pathlib.Path, experiment: str, seeds: list[int]) -> None:
    """Train what is missing. Every rank calls this."""
    settings, common = EXPERIMENTS[experiment]
    # Long, so that the two ranks can be paused for a measurement that wants the machine to itself.
    dist.init_process_group("gloo", timeout=datetime.timedelta(hours=4))
    torch.set_num_threads(1)
    prefer_fast_matmul(print)
    held = {(row["experiment"], row["name"], row["seed"]) for row in rows(path)}
    dist.barrier()
    for seed in seeds:
        for name, own in settings():
            if (experiment, name, seed) in held or (seed and name not in FINALISTS[experiment]):
                continue
            row = {"experiment": experiment, "name": name, "seed": seed, **once(f"{common} {own}", seed)}
            if dist.get_rank() == 0:
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    dist.barrier()
    dist.destroy_process_group()


def once(settings: str, seed: int) -> dict[str, float]:
    """Return what one run ends with. Collective."""
    preset, *overrides = settings.split()
    steps = next(each for each in reversed(overrides) if each.startswith("train.steps=")).split("=")[1]
    fixed = (f"seed={seed}", f"train.evaluate_every={steps}", "log.wandb.mode=disabled", "log.every=100000")
    job = load_job(preset, (*overrides, *fixed))
    seed_all(seed)
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), transport=TorchTransport())
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as own:
        folder = pathlib.Path(world.transport.gather_bytes(own.encode())[0].decode())
        try:
            result = train(job, world, folder, log=lambda line: None, show=lambda row: None)
        except NotFinite:
            return {"diverged": 1.0}
        world.transport.barrier()
    found = {key: value for key, value in result.items() if key.startswith("eval/")}
    return {
        **found,
        "bytes_a_step": result["sent_bytes"].get("gradient", 0) / job.train.steps,
        "seconds": round(time.perf_counter() - began, 1),
    }


def rows(path: pathlib.Path) -> list[dict[str, object]]:
    """Return what FILE holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show(path: pathlib.Path) -> None:
    """Print mean and standard deviation over seeds, the best first."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in rows(path):
        groups.setdefault((row["experiment"], row["name"]), []).append(row)
    table = []
    for (experiment, name), runs in groups.items():
        metric = next((key for key in ("eval/accuracy", "eval/loss") if key in runs[0]), None)
        values = [each[metric] for each in runs if metric in each]
        table.append(
            {
                "experiment": experiment,
                "name": name,
                "metric": metric,
                "seeds": len(runs),
                "mean": statistics.mean(values) if values else None,
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
                "bytes_a_step": statistics.mean(each.get("bytes_a_step", 0) for each in runs),
            }
        )
    table.sort(key=lambda row: (row["experiment"], row["mean"] if row["mean"] is not None else 1e9))
    print(render(table, list(table[0])))


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    if len(sys.argv) > 2:
        run(target, sys.argv[2], [int(each) for each in sys.argv[3:]] or [0])
    else:
        show(target)
