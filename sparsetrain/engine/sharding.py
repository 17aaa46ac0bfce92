"""What a job cannot ask of an engine whose step is all ranks' together, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparsetrain import registry
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.masks.methods.base import MaskMethod


def refusal(job: Job, shards: bool, gathers: bool) -> str:
    """Return what is wrong as `path: why`, nothing where all is well; `shards` and `gathers` as in Engine."""
    name, workers = job.engine.name, job.cluster.workers
    if job.exchange.every > 1:
        return (
            f"exchange.every: {job.exchange.every} with engine {name}, where a step is all ranks' together; allowed: 1"
        )
    if workers.varies:
        return f"cluster.workers: min and max with engine {name}, whose ranks cannot change; allowed: a number"
    if job.cluster.transport == "mpi":
        return f"cluster.transport: mpi with engine {name}, which needs torch's process group; allowed: torch"
    if job.masks is None:
        return ""
    method = job.masks.method.name
    if why := _unfit(method, shards, gathers):
        allowed = [each for each in registry.names("mask_method") if not _unfit(each, shards, gathers)]
        return f"masks.method: {method} with this engine {name}: it {why}; allowed: {', '.join(allowed)}"
    if gathers and job.masks.regulariser is not None:
        return "masks.regulariser: looks at whole weights in every step, which no rank has here; allowed: null"
    return ""


def refuse_types(parameters: Mapping[str, nn.Parameter], engine: str) -> None:
    """Raise JobError where not all weights are fp32: flat buffers have one type."""
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise JobError(
                f"model: {name} is {kind} with engine {engine}, whose weights are of one type; allowed: float32"
            )


def _unfit(name: str, shards: bool, gathers: bool) -> str:
    """Return what of a mask method such an engine cannot follow, nothing where it can."""
    method = registry.load("mask_method", name)

    def own(field: str) -> bool:
        return getattr(method, field) is not getattr(MaskMethod, field)

    if method.learns_budget or method.at_init:
        return "needs backward passes of its own"
    if shards and (method.rewinds or method.keeps_dormant or own("settle") or own("forgets")):
        return "changes weights or moments that are spread over the ranks"
    if gathers and (own("update_set") or own("pull")):
        return "looks at whole weights in every step"
    return ""
