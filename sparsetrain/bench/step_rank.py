"""One rank of `bench step`: `python -m sparsetrain.bench.step_rank SPEC.json` prints its figures as JSON."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from sparsetrain.bench.bf16_hook import bf16_hook
from sparsetrain.bench.rank import Way, sent_bytes, serve
from sparsetrain.bench.ranks import Place
from sparsetrain.bench.step import IDEAL, Plan
from sparsetrain.collective.torch_dist import torch_world
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.engine.learning_rate import factor_at
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.state import RunState, build
from sparsetrain.engine.trainer import Trainer

Step = Callable[[], Any]

MASKED = "masks.method=static masks.sparsity=0.9"
# By what is exchanged; the first of ours is the default codec, then each with one thing changed.
OURS: dict[str, str] = {
    "topk bf16": "",
    "topk bf16, after backward": "exchange.overlap=false",
    "topk int8": "exchange.values=int8",
    "lowrank 1": "exchange.regime=lowrank exchange.rank=1",
    "lowrank 4": "exchange.regime=lowrank exchange.rank=4",
    "local steps 5": "exchange.every=5 exchange.density={five}",
    "local steps 10": "exchange.every=10 exchange.density={ten} exchange.values=int8",
    "90 % packed": f"{MASKED} exchange.regime=packed exchange.values=fp32",
    "90 % local steps 5": f"{MASKED} exchange.every=5 exchange.density={{five}}",
}


def job_of(plan: Plan, settings: str = "") -> Job:
    """Return the job that all candidates train; `{five}` and `{ten}` stand for so many times the density."""
    sizes = (
        f"model.layers={plan.layers} model.width={plan.width} model.vocabulary={plan.vocabulary} "
        f"model.context={plan.context} data.context={plan.context} train.batch_size={plan.batch} "
        f"train.steps=1000000 exchange.every=1 exchange.density={plan.density} log.wandb.mode=disabled"
    )
    settings = settings.format(five=min(1.0, 5 * plan.density), ten=min(1.0, 10 * plan.density))
    return load_job("text_gpt", tuple(f"{sizes} {settings}".split()))


def plain(state: RunState, wrap: Callable[[nn.Module], nn.Module]) -> Step:
    """Return a step as one writes it without us: `wrap` gets a module whose forward is the loss."""
    job = state.job
    state.exchange.close()
    module = wrap(_Loss(state.model))
    peak = [group["lr"] for group in state.optimizer.param_groups]

    def step() -> None:
        # The schedule of ours: weights that have moved further take longer on this kind of model, by a tenth.
        factor = factor_at(state.step, job.train.steps, job.train.warmup, job.train.final_learning_rate)
        for group, rate in zip(state.optimizer.param_groups, peak, strict=True):
            group["lr"] = rate * factor
        state.optimizer.zero_grad(set_to_none=True)
        module(state.data.train_batch(state.samples())).backward()
        nn.utils.clip_grad_norm_(module.parameters(), job.train.clip)
        state.optimizer.step()
        state.advance(True)

    return step


class _Loss(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.model.loss(batch)


def distributed(hook: Any = None, rank: int = 0) -> Callable[[nn.Module], nn.Module]:
    """Return what wraps a module in DDP, with a hook of torch; `rank`: of PowerSGD's matrices."""

    def wrap(module: nn.Module) -> nn.Module:
        group = dist.new_group()
        # PowerSGD's callbacks start collectives themselves: with several buckets their order differs between ranks.
        bucket = 100_000 if rank else 10
        wrapped = nn.parallel.DistributedDataParallel(module, process_group=group, bucket_cap_mb=bucket)
        if rank:
            state = powerSGD_hook.PowerSGDState(group, matrix_approximation_rank=rank, start_powerSGD_iter=2)
            wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif hook is not None:
            wrapped.register_comm_hook(group, hook)
        return wrapped

    return wrap


def ours(job: Job, folder: pathlib.Path) -> tuple[Step, Callable[[], None]]:
    """Return the product's own step, and what ends its threads."""
    state = build(job, torch_world())
    return Trainer(state, folder, lambda line: None).train_step, state.exchange.close


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: the number of weights, and per candidate seconds and interface bytes of a step in
    each round. Collective."""
    prefer_fast_matmul(lambda line: None)
    job = job_of(plan)
    with contextlib.ExitStack() as stack:
        steps: dict[str, Step] = {
            IDEAL: plain(build(job, torch_world()), lambda module: module),
            "DDP dense fp32": plain(build(job, torch_world()), distributed()),
            "DDP fp16 hook": plain(build(job, torch_world()), distributed(default_hooks.fp16_compress_hook)),
            "DDP bf16 hook": plain(build(job, torch_world()), distributed(bf16_hook)),
            "DDP PowerSGD 1": plain(build(job, torch_world()), distributed(rank=1)),
            "DDP PowerSGD 4": plain(build(job, torch_world()), distributed(rank=4)),
        }
        for name, settings in OURS.items():
            step, close = ours(job_of(plan, settings), pathlib.Path())
            stack.callback(close)
            steps[name] = step
        figures: dict[str, dict[str, list[float | None]]] = {n: {"seconds": [], "interface": []} for n in steps}
        for turn in range(1 + plan.rounds):
            for name, step in steps.items():
                seconds, sent = once(step, plan.steps, place.interface)
                if turn:  # the first turn touches memory, and DDP and PowerSGD settle in it
                    figures[name]["seconds"].append(seconds)
                    figures[name]["interface"].append(sent)
        weights = sum(parameter.numel() for parameter in job.model.build().parameters())
        return {"weights": weights, "candidates": figures}


def once(step: Step, steps: int, interface: str | None) -> tuple[float, float | None]:
    """Return seconds and interface bytes sent of one step, mean over `steps` in a row. Collective."""
    dist.barrier()
    wire = sent_bytes(interface)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = time.perf_counter() - began
    dist.barrier()  # what a rank sends counts when its peers have it
    now = sent_bytes(interface)
    return seconds / steps, None if wire is None or now is None else (now - wire) / steps


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
