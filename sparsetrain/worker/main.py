"""What one process needs to be a rank: its device, its seeds, and the group in which it meets the others."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import random
import socket
from collections.abc import Callable, Generator

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from sparsetrain.collective.connections import Connections
from sparsetrain.collective.mpi import MpiTransport
from sparsetrain.collective.torch_dist import TorchTransport
from sparsetrain.collective.transport import Alone, PeerLost, Transport
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job, Workers
from sparsetrain.worker import interface
from sparsetrain.worker.environment import Place

Log = Callable[[str], None]
SLACK = 10.0  # seconds that torch's own limit is above ours
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun's agent serves the store at the master's port


def check_size(job: Job, place: Place) -> Job:
    """Return the job with `cluster.workers` as the launcher started them: what was started is what counts."""
    if job.cluster.workers.min <= place.size <= job.cluster.workers.max:
        return job
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
    job: Job,
    place: Place,
    device: torch.device,
    log: Log,
    listener: socket.socket | None,
    connections: Connections,
    mpi: MpiTransport | None = None,
) -> Generator[Transport]:
    """Hold the way to the other ranks while the loop runs: the default process group, or MPI where the job says so; a
    world of one rank needs none. `mpi`: how ranks that mpiexec has started reach each other.

    On success all ranks meet and the group is destroyed: plain exits abort now and then. On failure there is no
    meeting, since the others may be gone. Raises PeerLost when the group cannot be formed, JobError where the job wants
    MPI and nobody has started ranks with it.
    """
    # The watchdog's limits are the ones that hold; torch's own and MPI's stand behind them.
    limit = max(job.cluster.collective_timeout, job.cluster.first_timeout) + SLACK
    if place.size == 1:
        yield Alone(device)
        return
    if job.cluster.transport == "mpi":
        if mpi is None:
            raise JobError("cluster.transport: mpi needs ranks that mpiexec has started: mpiexec -n 4 python -m ...")
        log(f"rank {place.rank} of {place.size} on {place.node}: MPI over {job.cluster.interface or 'what it chooses'}")
        transport = MpiTransport(mpi.communicator, device, limit, connections)
        yield transport
        transport.barrier()
        return
    name = interface.choose(place.master_addr, job.cluster.interface, interface.interfaces())
    os.environ.update(interface.variables(name))
    backend = "nccl" if device.type == "cuda" else "gloo"
    log(f"rank {place.rank} of {place.size} on {place.node}: {backend} over {name or 'the default interface'}")
    connections.know([place.master_port])
    try:
        with connections.watched():
            meet = datetime.timedelta(seconds=job.cluster.collective_timeout)
            store = meeting_point(place, meet, listener)
            _number_anew()
            # Gloo tries to reach a rank for as long as its collectives may take: at first that is no longer than this.
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=meet)
            _set_pg_timeout(datetime.timedelta(seconds=limit))
            transport = TorchTransport(device, connections=connections)
            transport.tell_ports()
    except (RuntimeError, ValueError) as error:
        connections.cut()
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
        raise PeerLost(f"the ranks do not meet: {error}") from error
    try:
        yield transport
        transport.barrier()  # a rank that is lost now is lost as at any other time
    except PeerLost:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _number_anew() -> None:
    """Let this process's next group have the number that it has in a process which has made none.

    Ranks find each other under that number, and a group that could not be formed keeps the one it got: whoever has
    failed to meet once would never meet a rank that was started since.
    """
    if not dist.is_initialized():
        dist.distributed_c10d._world.group_count = 0


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
