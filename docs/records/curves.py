"""Losses along the way, and from them how many steps, bytes and seconds a setting takes to a loss.

    torchrun --standalone --nproc-per-node RANKS docs/records/curves.py FILE STEPS [SEED ...] [large]
    python docs/records/curves.py FILE LOSS [STEP.json ...]

The first trains every setting that FILE does not hold yet for these seeds (default 0) on this number of ranks. The
second prints steps and bytes to LOSS, medians over seeds, and seconds: times the step of `bench step --json` files.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import torch
import torch.distributed as dist

from sparsetrain.bench.step_rank import distributed, plain
from sparsetrain.bench.table import render
from sparsetrain.collective.torch_dist import TorchTransport, torch_world
from sparsetrain.collective.world import World
from sparsetrain.config.load import load_job
from sparsetrain.engine.evaluate import evaluate
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import NotFinite, train
from sparsetrain.worker.main import seed_all

COMMON = (
    "text_gpt model.layers=2 model.context=64 data.context=64 train.evaluate_every=50 "
    "train.evaluate_batches=20 log.wandb.mode=disabled log.every=100000"
)
DENSE = "exchange.regime=dense exchange.every=1"
EXACT = "exchange.values=fp32 exchange.error_feedback=none"
MASKS = "masks.method=rigl masks.sparsity=0.9 masks.every=100"
EVERY = "exchange.every=1 exchange.values=fp32"
OUTER = "exchange.outer.momentum=0.5 exchange.outer.learning_rate=0.7"
SGD = 'optimizer={"name":"sgd","momentum":0.9}'
SGD0 = 'optimizer={"name":"sgd","momentum":0.0}'
# Of each setting: the name of the step in `bench step` that does the same work, and the learning rates to try.
SETTINGS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "dense fp32": ("DDP dense fp32", f"{DENSE} {EXACT}", (2e-3, 3e-3, 5e-3)),
    "dense bf16": ("DDP bf16 hook", f"{DENSE} exchange.values=bf16", (3e-3,)),
    "torch PowerSGD 1": ("DDP PowerSGD 1", f"{DENSE} {EXACT}", (3e-3,)),
    "torch PowerSGD 4": ("DDP PowerSGD 4", f"{DENSE} {EXACT}", (3e-3,)),
    "lowrank 1": ("lowrank 1", "exchange.regime=lowrank exchange.rank=1 exchange.every=1", (2e-3, 3e-3, 5e-3)),
    "lowrank 4": ("lowrank 4", "exchange.regime=lowrank exchange.rank=4 exchange.every=1", (2e-3, 3e-3, 5e-3)),
    "H=5 d=0.05": ("local steps 5", "exchange.every=5 exchange.density=0.05", (3e-3, 5e-3)),
    "H=10 d=0.1": ("local steps 10", "exchange.every=10 exchange.density=0.1 exchange.values=int8", (3e-3, 5e-3)),
    "ef14 warm-up": ("topk bf16", "exchange.every=1 exchange.density=0.01 exchange.warmup=0.15", (1e-3,)),
    "90 % packed": (
        "90 % packed",
        f"{MASKS} exchange.regime=packed exchange.every=1 exchange.values=fp32",
        (1e-2, 2e-2),
    ),
    "lowrank 8": ("", "exchange.regime=lowrank exchange.rank=8 exchange.every=1", (3e-3,)),
    "H=5 d=0.05 tensor": ("", "exchange.every=5 exchange.density=0.05 exchange.bucket_elements=1", (5e-3,)),
    "H=5 d=0.05 warm-up": ("", "exchange.every=5 exchange.density=0.05 exchange.warmup=0.1", (5e-3,)),
    "H=5 d=0.05 outer 0.5": ("", f"{OUTER} exchange.every=5 exchange.density=0.05", (5e-3,)),
    "H=25 d=0.25": ("", "exchange.every=25 exchange.density=0.25", (5e-3,)),
    "sgd dense": ("", f"{DENSE} {EXACT} {SGD}", (0.1, 0.3)),
    "sgd ef14": ("", f"exchange.every=1 exchange.density=0.01 {SGD}", (0.1, 0.3)),
    "sgd dgc": ("", f"exchange.every=1 exchange.density=0.01 exchange.error_feedback=dgc {SGD0}", (0.1, 0.3)),
    "80 % packed": ("", f"{MASKS} masks.sparsity=0.8 exchange.regime=packed {EVERY}", (1e-2, 2e-2)),
    "95 % packed": ("", f"{MASKS} masks.sparsity=0.95 exchange.regime=packed {EVERY}", (2e-2,)),
    "80 % H=5 d=0.05": ("", f"{MASKS} masks.sparsity=0.8 exchange.every=5 exchange.density=0.05", (2e-2,)),
    "95 % H=5 d=0.05": ("", f"{MASKS} masks.sparsity=0.95 exchange.every=5 exchange.density=0.05", (2e-2,)),
    "90 % H=5 d=0.05": ("90 % local steps 5", f"{MASKS} exchange.every=5 exchange.density=0.05", (1e-2, 2e-2)),
}
# One confirmation with 10 M weights; its learning rates are smaller, as those of larger models are.
LARGE = "model.layers=8 model.width=320 model.heads=5 train.evaluate_every=25 train.evaluate_batches=10"
CONFIRMED = {"dense fp32": (1e-3, 2e-3), "lowrank 4": (1e-3,), "H=5 d=0.05": (1e-3, 2e-3)}
FINALISTS = {
    *("dense fp32 0.002", "dense fp32 0.003", "lowrank 4 0.003", "torch PowerSGD 4 0.003", "H=5 d=0.05 0.005"),
    *("H=10 d=0.1 0.005", "90 % packed 0.02", "90 % H=5 d=0.05 0.02"),
}


def run(path: pathlib.Path, steps: int, seeds: list[int], large: bool) -> None:
    """Train what is missing. Every rank calls this."""
    dist.init_process_group("gloo", timeout=datetime.timedelta(hours=4))
    torch.set_num_threads(1)
    prefer_fast_matmul(print)
    held = {(row["name"], row["seed"], row["ranks"], row["length"]) for row in rows(path)}
    dist.barrier()
    for seed in seeds:
        for kind, (_, settings, usual) in SETTINGS.items():
            for rate in CONFIRMED.get(kind, ()) if large else usual:
                name = f"{kind} {rate:g}"
                if (name, seed, dist.get_world_size(), steps) in held or (seed and name not in FINALISTS):
                    continue
                common = f"{COMMON} {LARGE}" if large else COMMON
                job = f"{common} train.steps={steps} {settings} optimizer.learning_rate={rate}"
                found = hooked(job, seed, int(kind[-1])) if kind.startswith("torch") else once(job, seed)
                row = {
                    "name": name,
                    "kind": kind,
                    "seed": seed,
                    "ranks": dist.get_world_size(),
                    "length": steps,
                    **found,
                }
                if dist.get_rank() == 0:
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(name, seed, min(found["losses"], default=None), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def once(settings: str, seed: int) -> dict[str, Any]:
    """Return the steps of a run's evaluations, their losses, and its bytes a step. Collective."""
    preset, *overrides = settings.split(" ")
    job = load_job(preset, (*overrides, f"seed={seed}"))
    seed_all(seed)
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), transport=TorchTransport())
    seen: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as own:
        folder = pathlib.Path(world.transport.gather_bytes(own.encode())[0].decode())
        try:
            result = train(job, world, folder, log=lambda line: None, show=lambda row: _note(row, seen))
        except NotFinite:
            return {"steps": [], "losses": [], "bytes_a_step": 0.0}
        world.transport.barrier()
    sent = result["sent_bytes"]
    return {
        "steps": [step for step, _ in seen],
        "losses": [round(loss, 5) for _, loss in seen],
        "bytes_a_step": (sent.get("gradient", 0) + sent.get("mask", 0)) / job.train.steps,
    }


def hooked(settings: str, seed: int, rank: int) -> dict[str, Any]:
    """Return what `once` does, for DDP with torch's PowerSGD hook and one bucket. Collective."""
    preset, *overrides = settings.split(" ")
    job = load_job(preset, (*overrides, f"seed={seed}"))
    seed_all(seed)
    state = build(job, torch_world())
    step = plain(state, distributed(rank=rank))
    seen: list[tuple[int, float]] = []
    for done in range(1, job.train.steps + 1):
        step()
        if done % job.train.evaluate_every == 0:
            found = evaluate(state.model, state.data, job.train.batch_size, job.train.evaluate_batches, state.world)
            seen.append((done, round(found["eval/loss"], 5)))
    sizes = [tuple(each.shape) for each in state.parameters.values()]
    factors = [size[0] * math.prod(size[1:]) > rank * (size[0] + math.prod(size[1:])) for size in sizes]
    sent = sum(
        rank * (n[0] + math.prod(n[1:])) if small else math.prod(n) for n, small in zip(sizes, factors, strict=True)
    )
    return {"steps": [at for at, _ in seen], "losses": [loss for _, loss in seen], "bytes_a_step": 4.0 * sent}


def _note(row: Any, seen: list[tuple[int, float]]) -> None:
    if "eval/loss" in row:
        seen.append((int(row["train/step"]), float(row["eval/loss"])))


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return what FILE holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_to(row: dict[str, Any], loss: float) -> float:
    """Return at how many steps a run first was at `loss`, between two evaluations by a straight line; else infinity."""
    before = (0, float("inf"))
    for step, now in zip(row["steps"], row["losses"], strict=True):
        if now <= loss:
            last, was = before
            return step if was == float("inf") else last + (step - last) * (was - loss) / (was - now)
        before = (step, now)
    return float("inf")


def show(path: pathlib.Path, loss: float, timings: list[pathlib.Path]) -> None:
    """Print the table, the quickest by steps first."""
    groups: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for row in rows(path):
        groups.setdefault((row["ranks"], row["length"], row["name"]), []).append(row)
    measured = [json.loads(each.read_text()) for each in timings]
    table = []
    for (ranks, length, name), runs in groups.items():
        steps = statistics.median(steps_to(row, loss) for row in runs)
        sent = statistics.mean(row["bytes_a_step"] for row in runs)
        line = {
            "ranks": ranks,
            "length": length,
            "name": name,
            "seeds": len(runs),
            "final_loss": statistics.mean(row["losses"][-1] for row in runs if row["losses"]),
            "steps": None if steps == float("inf") else round(steps),
            "megabytes": None if steps == float("inf") else steps * sent / 1e6,
        }
        table.append(_timed(line, steps, SETTINGS[runs[0]["kind"]][0], measured))
        if runs[0]["kind"] == "dense fp32":  # rounding to bf16 changes its steps by less than seeds do
            half = {**line, "name": name.replace("fp32", "bf16, steps of fp32"), "megabytes": None}
            table.append(_timed(half, steps, "DDP bf16 hook", measured))
    table.sort(key=lambda row: (row["ranks"], row["length"], row["steps"] or 1e9))
    columns = list(dict.fromkeys(key for row in table for key in row))
    print(render(table, columns))


def _timed(line: dict[str, Any], steps: float, step: str, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the line with the seconds that so many steps take by each measurement of its ranks."""
    seconds = {}
    for found in measured:
        of = {row["name"]: row["seconds"] for row in found["rows"]}
        if found["hosts"] == line["ranks"] and steps < float("inf") and step in of:
            seconds[f"s_at_{found['rate']}"] = steps * of[step]
    return {**line, **seconds}


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    large = "large" in sys.argv
    numbers = [each for each in sys.argv[2:] if not each.endswith(".json") and each != "large"]
    if "RANK" in os.environ:
        run(target, int(numbers[0]), [int(each) for each in numbers[1:]] or [0], large)
    else:
        show(target, float(numbers[0]), [pathlib.Path(each) for each in sys.argv[2:] if each.endswith(".json")])
