"""What a worker computes in a step, timed on this machine: forward, backward, clipping, optimizer."""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch
from torch import nn

from sparsetrain.collective.payload import Codec
from sparsetrain.collective.world import World
from sparsetrain.config.job import Job
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.memory import keep_freed_memory
from sparsetrain.engine.state import build
from sparsetrain.plan.costs import measure as measured_costs
from sparsetrain.plan.rest import with_rest
from sparsetrain.plan.step import Profile

STEPS, WARMUP = 5, 2


def compute_seconds(job: Job) -> float:
    """Return the median seconds of a step of one worker alone. Raises JobError for what the job cannot do."""
    if job.cluster.threads_per_worker:
        torch.set_num_threads(job.cluster.threads_per_worker)
    prefer_fast_matmul(lambda line: None)
    alone = dataclasses.replace(job, exchange=dataclasses.replace(job.exchange, regime="dense", overlap=False))
    state = build(alone, World())
    spent = []
    for _ in range(WARMUP + STEPS):
        began = time.perf_counter()
        state.optimizer.zero_grad(set_to_none=True)
        for _ in range(job.train.accumulate):
            state.model.loss(state.data.train_batch(state.samples()[: job.train.batch_size])).backward()
        if job.train.clip:
            nn.utils.clip_grad_norm_(state.model.parameters(), job.train.clip)
        state.optimizer.step()
        spent.append(time.perf_counter() - began)
        state.advance(True)
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
