"""One process = one rank: set up threads, seeds and the process group, run the loop, leave cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sparsetrain.collective.torch_dist import TorchTransport
from sparsetrain.collective.transport import Alone
from sparsetrain.collective.world import World
from sparsetrain.config.cache import cache_folder
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job, Workers
from sparsetrain.worker import interface
from sparsetrain.worker.environment import Place

Log = Callable[[str], None]
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun's agent serves the store at the master's port


def run_worker(
    job: Job,
    place: Place,
    folder: pathlib.Path,
    log: Log,
    show: Callable[[dict[str, float]], None] | None = None,
    listener: socket.socket | None = None,
) -> dict[str, Any]:
    """Train as rank `place.rank` and return what the loop returns; every rank of the world must call this.

    `listener`, on rank 0, is a socket that is bound to the place's address and port already: nobody can take the port
    in between, and the store listens on that address only.

    Raises whatever the loop raises; then no collective is issued any more, so that a failed rank ends at once.
    """
    from sparsetrain.engine.matmul import prefer_fast_matmul
    from sparsetrain.engine.memory import keep_freed_memory
    from sparsetrain.engine.trainer import train

    if job.cluster.threads_per_worker:
        torch.set_num_threads(job.cluster.threads_per_worker)
    seed_all(job.seed)
    device = pick_device(job, place)
    if device.type == "cpu":
        prefer_fast_matmul(log)
        keep_freed_memory()
    with process_group(job, place, device, log, listener):
        transport = TorchTransport(device) if place.size > 1 else Alone(device)
        world = World(
            rank=place.rank, size=place.size, local_rank=place.local_rank, node=place.node, transport=transport
        )
        return train(job, world, folder, log, show, cache_folder(os.environ) / "calibrations")


def check_size(job: Job, place: Place) -> Job:
    """Return the job with `cluster.workers` as the launcher started them: what was started is what counts."""
    started = Workers(min=place.size, max=place.size)
    return dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, workers=started))


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, equally on all ranks (replicas start from equal weights)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(job: Job, place: Place) -> torch.device:
    """Return this rank's device: CUDA when the job gives workers a GPU. Raises JobError when there is none."""
    if job.cluster.gpus_per_worker <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise JobError(f"cluster.gpus_per_worker: torch sees no CUDA device on {place.node}; 0 trains on the CPU")
    # Ray shows each worker only its own device, torchrun shows all of them to all.
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def process_group(
    job: Job, place: Place, device: torch.device, log: Log, listener: socket.socket | None = None
) -> Iterator[None]:
    """Hold the default process group while the loop runs; a world of one rank needs none.

    On success all ranks meet and the group is destroyed: plain exits abort now and then. On failure there is no
    meeting, since the others may be gone.
    """
    if place.size == 1:
        yield
        return
    name = interface.choose(place.master_addr, job.cluster.interface, interface.interfaces())
    os.environ.update(interface.variables(name))
    backend = "nccl" if device.type == "cuda" else "gloo"
    log(f"rank {place.rank} of {place.size} on {place.node}: {backend} over {name or 'the default interface'}")
    timeout = datetime.timedelta(seconds=job.cluster.collective_timeout)
    store = meeting_point(place, timeout, listener)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=timeout)
    yield
    dist.barrier()
    dist.destroy_process_group()


def meeting_point(place: Place, timeout: datetime.timedelta, listener: socket.socket | None = None) -> dist.TCPStore:
    """Return the store in which the ranks find each other; rank 0 serves it, on the master's address alone."""
    serves = place.rank == 0 and AGENT_STORE not in os.environ
    if serves and listener is None:
        family = socket.AF_INET6 if ":" in place.master_addr else socket.AF_INET
        listener = socket.create_server((place.master_addr, place.master_port), family=family)
    return dist.TCPStore(
        place.master_addr,
        place.master_port,
        place.size,
        is_master=serves,
        timeout=timeout,
        master_listen_fd=listener.detach() if serves and listener else None,
    )
