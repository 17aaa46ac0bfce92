"""`bench supports`: which places real ranks choose, so that a simulation knows how their unions grow.

One process trains the job's model as many ranks would, one after the other: each has its own samples, its own residual
and its own selection, and all take the step of the mean. In the end it is counted how many ranks chose each place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain.bench.table import render
from sparsetrain.collective.world import World
from sparsetrain.config.job import Job
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.state import build
from sparsetrain.gradient.density import entries
from sparsetrain.kernels.merge import merge
from sparsetrain.kernels.select import select
from sparsetrain.plan.fill import Random, Recorded, counted

COLUMNS = ("ranks", "union", "random", "share_of_random")
SHOWN = (2, 4, 8, 16, 32, 64, 256, 1024, 16384)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """`ranks` that train for `steps` steps with a `density` of entries each."""

    ranks: int = 64
    steps: int = 30
    density: float = 0.01

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        if self.ranks < 2 or self.steps < 1 or not 0 < self.density <= 1:
            raise ValueError("want at least 2 ranks and 1 step, and a density in (0, 1]")


def measure(job: Job, plan: Plan) -> Recorded:
    """Return what the ranks chose in the last step, over all matrices of the model together."""
    prefer_fast_matmul(lambda line: None)
    alone = dataclasses.replace(job, exchange=dataclasses.replace(job.exchange, regime="dense", overlap=False, every=1))
    state = build(alone, World())
    names = [name for name, parameter in state.parameters.items() if parameter.ndim > 1]
    matrices = [state.parameters[name] for name in names]
    size = sum(parameter.numel() for parameter in matrices)
    k = entries(plan.density, size)
    residuals = [torch.zeros(size) for _ in range(plan.ranks)]
    spare, mean = torch.empty(size), torch.empty(size)
    chosen: list[tuple[Tensor, Tensor]] = []
    for _ in range(plan.steps):
        chosen.clear()
        rest: dict[str, Tensor] = {}
        for rank in range(plan.ranks):
            _gradient(state, job)
            parts = tuple(parameter.grad.contiguous() for parameter in matrices if parameter.grad is not None)
            found = select(residuals[rank], spare, k, parts=parts)
            residuals[rank], spare = spare, residuals[rank]
            chosen.append((found.indices, found.values))
            for name, parameter in state.parameters.items():
                if parameter.ndim <= 1 and parameter.grad is not None:
                    rest[name] = rest.get(name, 0.0) + parameter.grad / plan.ranks
        merge(chosen, mean, 1.0 / plan.ranks)
        for parameter, part in zip(matrices, mean.split([p.numel() for p in matrices]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        for name, gradient in rest.items():
            state.parameters[name].grad = gradient
        state.optimizer.step()
    state.exchange.close()
    source = f"{job.name}, {size} weights in matrices, {plan.steps} steps"
    return Recorded(plan.ranks, counted([places.numpy() for places, _ in chosen], size), source)


def _gradient(state: Any, job: Job) -> None:
    state.optimizer.zero_grad(set_to_none=True)
    state.model.loss(state.data.train_batch(state.samples()[: job.train.batch_size])).backward()
    state.advance(True)


def rows(found: Recorded) -> list[dict[str, Any]]:
    """Return a row with COLUMNS for 2 to 16,384 ranks."""
    table = []
    for ranks in SHOWN:
        union, random = found.union(ranks, found.density), Random().union(ranks, found.density)
        table.append({"ranks": ranks, "union": union, "random": random, "share_of_random": union / random})
    return table


def show(found: Recorded, table: Sequence[dict[str, Any]]) -> str:
    """Return the table that people read, under one line that says what was counted."""
    heading = f"{found.source}, {found.ranks} ranks, density {found.density:.4g}; above {found.ranks} ranks estimated"
    return f"{heading}\n{render(table, COLUMNS)}"
