"""What a worker computes in a step, timed on this machine: the product's own step of one rank alone."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time

import torch

from sparsetrain.collective.payload import Codec
from sparsetrain.collective.world import World
from sparsetrain.config.job import Job
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.memory import keep_freed_memory
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.plan.costs import measure as measured_costs
from sparsetrain.plan.rest import with_rest
from sparsetrain.plan.step import Profile

STEPS, WARMUP = 5, 2


def compute_seconds(job: Job) -> float:
    """Return the median seconds of a step of one worker alone. Raises JobError for what the job cannot do."""
    if job.cluster.threads_per_worker:
        torch.set_num_threads(job.cluster.threads_per_worker)
    prefer_fast_matmul(lambda line: None)
    exchange = dataclasses.replace(job.exchange, regime="dense", overlap=False, every=1)
    state = build(dataclasses.replace(job, exchange=exchange), World())
    trainer = Trainer(state, pathlib.Path(), lambda line: None)
    spent = []
    for _ in range(WARMUP + STEPS):
        began = time.perf_counter()
        trainer.train_step()
        spent.append(time.perf_counter() - began)
    state.exchange.close()
    return statistics.median(spent[WARMUP:])


def codec_of(job: Job) -> Codec:
    """Return the codes of a job's exchange."""
    return Codec(job.exchange.indices.build(), job.exchange.values.build())


def profile_of(job: Job, compute_s: float | None, slower: float) -> Profile:
    """Return the profile of this machine's processor, `slower` times as long for each thing; `compute_s` where it is
    known."""
    keep_freed_memory()  # as every worker does
    codec = codec_of(job)
    costs = measured_costs(codec, job.exchange.density, max(1, job.cluster.threads_per_worker))
    costs = with_rest(costs, codec, job.exchange.density)
    seconds = compute_seconds(job) * slower if compute_s is None else compute_s
    return Profile(compute_s=seconds, costs=costs.scaled(slower), codec=codec)
