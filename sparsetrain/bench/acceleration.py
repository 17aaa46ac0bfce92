"""What sparse weights buy in a whole training step: a job's model dense, masked, and with `compute`, in one process."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparsetrain.bench.peak import Peak
from sparsetrain.bench.table import render
from sparsetrain.collective.world import World
from sparsetrain.compute.layer import MASKED
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.engine.compact import CompactEngine, refusal
from sparsetrain.engine.engine import Engine
from sparsetrain.engine.evaluate import evaluate
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.masks.lazy import Lazy

COLUMNS = (
    *("weights", "step_ms", "speedup", "forward_backward_ms", "eval_loss"),
    *("state_mib", "of_dense", "peak_mib", "peak_of_dense"),
)
LAYERS = ("layer", "shape", "density", "way", "dense_ms", "chosen_ms", "speedup")
SETTLING = 3  # steps that are not counted: the optimizer's state and the exchange's buffers are made in them


@dataclasses.dataclass
class Runner:
    """One of the runs that take turns: its trainer, the seconds of its steps, the bytes of its state."""

    name: str
    trainer: Trainer
    seconds: list[float] = dataclasses.field(default_factory=list)
    passes: list[float] = dataclasses.field(default_factory=list)
    bytes: int = 0

    def step(self, counts: bool) -> None:
        """Train one step; masks change where the job says so, and that counts too."""
        trainer, began = self.trainer, time.perf_counter()
        spans = trainer.recorder.window.spans
        before = spans["forward_backward"]
        trainer.train_step()
        if counts:
            self.seconds.append(time.perf_counter() - began)
            self.passes.append(spans["forward_backward"] - before)


def measure(job: str, overrides: Sequence[str], compute: str, steps: int, rounds: int, threads: int) -> dict[str, Any]:
    """Return {"rows", "layers"} of a job's training steps on one rank, its mask updates among them.

    `rows` has COLUMNS for dense weights, masked dense weights and the job with `compute`, which take turns of `steps`
    steps, `rounds` times; `speedup` is over the faster of the first two, median over rounds. `state_mib` is what `held`
    says, `peak_mib` that and the most of other tensors that are alive beside a forward and backward pass, in a step
    that changes masks. `layers` has LAYERS for each layer whose way was measured. Raises JobError for a job without
    masks or one that needs whole weights.
    """
    if steps < 1 or rounds < 1 or threads < 1 or compute == "masked":
        raise ValueError("want at least 1 step, 1 round and 1 thread, and a compute other than masked")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    total = 4 * (SETTLING + steps * rounds)  # so that masks change behind what is timed, too
    settings = (*overrides, f"train.steps={total}", "cluster.workers=1", "log.wandb.mode=disabled")
    kinds = {"dense": ("masks=null",), "masked": ("compute=masked",), compute: (f"compute={compute}",)}
    try:
        jobs = {name: load_job(job, (*settings, *own)) for name, own in kinds.items()}
        runners = [_runner(name, each) for name, each in jobs.items()]
        for turn in range(rounds + 1):
            for runner in runners:
                for _ in range(steps if turn else SETTLING):
                    runner.step(counts=turn > 0)
        return _result(runners, steps)
    finally:
        torch.set_num_threads(before)


def _runner(name: str, job: Job) -> Runner:
    if name == "masked" and job.masks is None:
        raise JobError("bench acceleration: the job has no masks; set masks.method and masks.sparsity")
    trainer = Trainer(build(job, World()), pathlib.Path(), lambda line: None)
    engine = trainer.state.engine
    if job.compute != "masked" and job.masks is not None and not isinstance(engine, CompactEngine):
        raise JobError(refusal(job))
    if engine.choose():
        trainer.state.sync_masks()
    return Runner(name, trainer)


def _result(runners: Sequence[Runner], steps: int) -> dict[str, Any]:
    turns = {r.name: [sum(r.seconds[i : i + steps]) for i in range(0, len(r.seconds), steps)] for r in runners}
    best = [min(pair) for pair in zip(turns["dense"], turns["masked"], strict=True)]
    sizes = {runner.name: held(runner.trainer) for runner in runners}
    peaks = {runner.name: sizes[runner.name] + beside(runner.trainer) for runner in runners}
    rows = []
    for runner in runners:
        state = runner.trainer.state
        loss = evaluate(state.engine, state.data, state.job.train.batch_size, 20, state.world)["eval/loss"]
        values = (
            runner.name,
            1e3 * statistics.median(turns[runner.name]) / steps,
            statistics.median(base / own for base, own in zip(best, turns[runner.name], strict=True)),
            1e3 * statistics.median(runner.passes),
            loss,
            sizes[runner.name] / 2**20,
            sizes[runner.name] / sizes["dense"],
            peaks[runner.name] / 2**20,
            peaks[runner.name] / peaks["dense"],
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return {"rows": rows, "layers": _layers(runners[-1].trainer.state.engine)}


def _layers(engine: Engine) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if not isinstance(engine, CompactEngine):
        return rows
    for name, timed in engine.said.items():
        layer = engine.layers[name]
        dense, own = timed.seconds.get(MASKED), timed.seconds.get(timed.chosen)
        shape = "x".join(map(str, layer.geometry.shape))
        speedup = dense / own if dense and own else None
        times = [1e3 * each if each else None for each in (dense, own)]
        rows.append(dict(zip(LAYERS, (name, shape, layer.pattern.density, timed.chosen, *times, speedup), strict=True)))
    return rows


def beside(trainer: Trainer) -> int:
    """Return the most bytes of tensors beside those of `held` in a step that changes masks, its forward and backward
    pass, and what that keeps for later, apart. Trains until there is one."""
    state = trainer.state
    while True:
        epoch = state.masks.masks.epoch if state.masks is not None else 0
        trainer._set_learning_rate()
        trainer._forward_backward()
        with Peak() as peak:
            if state.masks is not None and state.masks.watches(state.step + 1):
                gradients = Lazy(state.masks.parameters, state.engine.dense_gradient)
                state.masks.observe(state.step + 1, gradients)
            trainer.stepped(state.update.step(state.step + 1, False))
            trainer._change_masks()
        if state.masks is None or state.masks.masks.epoch > epoch:
            return peak.most


def held(trainer: Trainer) -> int:
    """Return the bytes of the tensors that a trainer keeps between two steps: weights, gradients, optimizer state, what
    the exchange keeps and its buffers, masks, and patterns of sparse layers."""
    state = trainer.state
    found: dict[int, int] = {}

    def add(tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()

    for parameter in state.parameters.values():
        add(parameter.data)
        add(parameter.grad)
        for value in state.optimizer.state.get(parameter, {}).values():
            add(value)
    for channel in state.exchange.channels:
        for tensor in channel.tensors():
            add(tensor)
    masks = state.masks
    if masks is not None:
        for sets in (masks.masks.masks, masks.explored.union.masks):
            for mask in sets.values():
                add(mask)
    patterns = 0
    if isinstance(state.engine, CompactEngine):
        patterns = sum(layer.pattern.nbytes() for layer in state.engine.layers.values())
    return sum(found.values()) + patterns


def show(result: Mapping[str, Any]) -> str:
    """Return the tables that people read."""
    layers = render(result["layers"], LAYERS) if result["layers"] else "no layer was measured"
    return f"{render(result['rows'], COLUMNS)}\n\n{layers}"
