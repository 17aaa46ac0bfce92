"""Ranks that mpiexec has started: who they are, and where rank 0 can be met by gloo or nccl."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping

from sparsetrain.collective.mpi import MpiTransport, mpi_world
from sparsetrain.collective.transport import Transport
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.worker import interface
from sparsetrain.worker.environment import MPI_KEYS, Place

REACH = 3.0  # seconds in which a rank has to answer at an address


def find_place(job: Job) -> tuple[Place, MpiTransport, socket.socket | None]:
    """Return this rank's place, the way to the others through MPI, and on rank 0 the socket at which it is met.

    All ranks must call it. Raises JobError when MPI is missing, or when the ranks have no address of rank 0 in common.
    """
    world = mpi_world(timeout=job.cluster.start_timeout)
    for _, key in MPI_KEYS:
        if os.environ.get(key, str(world.size)) != str(world.size):
            raise JobError(
                f"{key}: says {os.environ[key]} ranks where mpi4py finds {world.size}: mpiexec is of another MPI; "
                "allowed: that of the MPI which mpi4py was built with"
            )
    transport = world.transport
    assert isinstance(transport, MpiTransport)
    address, port, listener = "127.0.0.1", 1, None
    if world.size > 1 and job.cluster.transport != "mpi":
        address, port, listener = meet(transport, job.cluster.interface, interface.interfaces())
    place = Place(
        rank=world.rank,
        size=world.size,
        local_rank=world.local_rank,
        node=world.node,
        master_addr=address,
        master_port=port,
    )
    return place, transport, listener


def meet(transport: Transport, wanted: str | None, found: Mapping[str, str]) -> tuple[str, int, socket.socket | None]:
    """Return the first address of rank 0 that all ranks reach, its port, and on rank 0 the socket that listens there.

    `found`: this host's addresses by interface. Ranks on several hosts never meet on a loopback. All ranks must call
    it. Raises JobError with the addresses that were tried.
    """
    hosts = {name.decode() for name in transport.gather_bytes(socket.gethostname().encode())}
    own = [found[wanted]] if wanted in found else list(found.values())
    inside = sorted(address for address in own if address.startswith("127."))
    outside = [address for address in own if not address.startswith("127.")]
    offered = json.dumps([*inside, *outside] if len(hosts) == 1 else outside)
    tried = json.loads(transport.gather_bytes(offered.encode())[0])
    for address in tried:
        with contextlib.ExitStack() as held:
            listener = held.enter_context(socket.create_server((address, 0))) if transport.rank == 0 else None
            said = str(listener.getsockname()[1] if listener else 0).encode()
            port = int(transport.gather_bytes(said)[0])
            reached = transport.rank == 0 or _reaches(address, port)
            if set(transport.gather_bytes(b"y" if reached else b"n")) == {b"y"}:
                if listener:
                    _forget_callers(listener, transport.size - 1)
                held.pop_all()
                return address, port, listener
    raise JobError(
        f"cluster.interface: no address of rank 0 is reached by all ranks; tried {', '.join(tried) or 'none'}"
        f" on {len(hosts)} host(s)"
    )


def _reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=REACH).close()
    except OSError:
        return False
    return True


def _forget_callers(listener: socket.socket, count: int) -> None:
    """Take the calls that only asked whether somebody is there, so that the store does not see them."""
    listener.settimeout(REACH)
    for _ in range(count):
        with contextlib.suppress(OSError):
            listener.accept()[0].close()
    listener.setblocking(True)
