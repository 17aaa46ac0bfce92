"""MPI as a transport, for ranks that mpiexec or a batch system has started. Needs sparsetrain[mpi]."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from sparsetrain.collective.connections import Connections
from sparsetrain.collective.mpi_gpu import gpu_aware
from sparsetrain.collective.transport import PeerLost, Transport
from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError

LARGEST = 2**31 - 1  # bytes of one message: counts of many MPI libraries are 32 bits wide
SPIN = 0.002  # seconds: with pauses from 0.2 ms on, a gather of 0.6 MB by 4 ranks took 1.4 ms instead of 0.8 ms
PAUSE = 0.00005  # seconds


class TransportTimeout(RuntimeError):
    """A call that the other ranks did not answer in time; it names the call and this rank."""


class MpiTransport(Transport):
    """The ranks of `communicator` (mpi4py's). Every call ends within `timeout` seconds or raises TransportTimeout, and
    raises PeerLost when `connections` are cut.

    After that the ranks are out of step: the transport is of no further use, and the process should end by
    `communicator.Abort`, since MPI's own end waits for all ranks. Tensors on the CPU are sent from and received into
    their own storage, and so are those on a GPU where the MPI library says that it can; else they travel through pinned
    memory of the host. Sums of 16-bit floats are taken in fp32 and
    rounded once. Raises ValueError for a message of 2 GiB and more; sums and broadcasts may be of any size.
    """

    def __init__(
        self,
        communicator: Any,
        device: torch.device | None = None,
        timeout: float = 60.0,
        connections: Connections | None = None,
    ) -> None:
        super().__init__(communicator.Get_rank(), communicator.Get_size(), device)
        self.communicator = communicator
        self.timeout = timeout
        self.connections = connections or Connections()
        self.mpi = _load()
        self.direct = self.device.type == "cuda" and gpu_aware(self.mpi)
        self._parked: list[Any] = []

    def _all_reduce(self, tensor: Tensor) -> None:
        # MPI libraries do not know bf16: one raises, another answers NaN.
        host = self._near(tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor)
        element = self._element(host.dtype)
        for piece in host.view(-1).split(max(1, LARGEST // host.element_size())):
            request = self.communicator.Iallreduce(self.mpi.IN_PLACE, [_buffer(piece), element], op=self.mpi.SUM)
            self._wait("all_reduce", [request], host)
        if host is not tensor:
            tensor.copy_(host)

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        flat = tensor.view(-1)
        parts = self._swap("all_gather", [self._near(flat)] * self.size, [flat.numel()] * self.size, flat.clone())
        return [part.view_as(tensor) for part in parts]

    def _all_gather_v(self, tensor: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return self._swap("all_gather_v", [self._near(tensor)] * self.size, lengths, tensor)

    def _all_to_all_v(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        return self._swap("all_to_all_v", [self._near(part) for part in parts], sizes, parts[self.rank])

    def _swap(self, call: str, parts: Sequence[Tensor], sizes: Sequence[int], own: Tensor) -> list[Tensor]:
        """Send the host's parts[r] to rank r; return the `sizes` elements of the others, and `own` in its place."""
        # Why not Iallgatherv and Ialltoallv: the latter wants all parts in one buffer, and MPICH takes longer in both.
        # 4 ranks, 0.6 MB each, one host, interleaved, medians of 22: 0.81-0.84 ms here, 0.86 and 1.06 ms there;
        # a gather of 16 MB each: 40 and 88 ms.
        arrived = [own if source == self.rank else self._empty(size, own) for source, size in enumerate(sizes)]
        requests: list[Any] = []
        sources: list[int | None] = []
        for step in range(1, self.size):
            to, source = (self.rank + step) % self.size, (self.rank - step) % self.size
            if sizes[source]:
                requests.append(self.communicator.Irecv(self._bytes(call, arrived[source]), source))
                sources.append(source)
            if parts[to].numel():
                requests.append(self.communicator.Isend(self._bytes(call, parts[to]), to))
                sources.append(None)
        self._wait(call, requests, parts, arrived, sources=sources)
        return [part.to(own.device) for part in arrived]

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        host = self._near(tensor)
        for piece in _raw(host).split(LARGEST):
            self._wait("broadcast", [self.communicator.Ibcast(self._bytes("broadcast", piece), source)], host)
        if host is not tensor:
            tensor.copy_(host)

    def _twin(self) -> Transport:
        if self.mpi.Query_thread() < self.mpi.THREAD_MULTIPLE:
            raise RuntimeError("this MPI library lets only one thread call at a time: no exchange can overlap here")
        communicator, request = self.communicator.Idup()
        self._wait("twin", [request], communicator)
        return MpiTransport(communicator, self.device, self.timeout, self.connections)

    def cut(self) -> None:
        """See Transport."""
        self.connections.cut()

    def _free(self) -> None:
        if not self._parked:  # freeing waits for what is under way
            self.communicator.Free()

    def _wait(self, call: str, requests: list[Any], *buffers: Any, sources: Sequence[int | None] = ()) -> None:
        """Return when all requests are done. MPI has no wait with a limit, and moves data only while it is asked.
        `sources`: for each request the rank that it receives from, where that is known."""
        with self.connections.used():
            self._ask(call, requests, buffers, sources)

    def _ask(self, call: str, requests: list[Any], buffers: tuple[Any, ...], sources: Sequence[int | None]) -> None:
        started = time.monotonic()
        while not self.mpi.Request.Testall(requests):
            waited = time.monotonic() - started
            if self.connections.cut_off or waited > self.timeout:
                self._parked.append((requests, buffers))  # MPI may yet write into them
                self._give_up(call, [s for request, s in zip(requests, sources, strict=False) if not request.Test()])
            if waited < SPIN:
                os.sched_yield()  # ranks may share a core: whoever has work goes first
            else:
                time.sleep(PAUSE)

    def _give_up(self, call: str, sources: list[int | None]) -> NoReturn:
        """Raise what ends a call; `sources`: from whom nothing has come, None where that is not known."""
        silent = ", ".join(map(str, sorted(source for source in sources if source is not None)))
        if self.connections.cut_off:
            late = self.connections.late or f"{call}: this rank has been cut off"
            raise PeerLost(f"{late} (nothing came from rank {silent})" if silent else late)
        who = f"rank {silent}" if silent else "all others"
        raise TransportTimeout(f"{call} on rank {self.rank}: no answer from {who} in {self.timeout:g} s")

    def _bytes(self, call: str, tensor: Tensor) -> list[Any]:
        if tensor.nbytes > LARGEST:
            raise ValueError(f"{call} on rank {self.rank}: a message of {tensor.nbytes} bytes, at most {LARGEST}")
        # Bytes, since MPI libraries do not know all of torch's types.
        return [_buffer(_raw(tensor)), tensor.nbytes, self.mpi.BYTE]

    def _near(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself where MPI can read it, else a copy in pinned memory of the host."""
        if tensor.device.type == "cpu":
            return tensor
        if self.direct:
            torch.cuda.current_stream(tensor.device).synchronize()  # MPI knows nothing of torch's streams
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)

    def _empty(self, count: int, like: Tensor) -> Tensor:
        """Return room for what comes, where MPI can write it."""
        if self.direct:
            return like.new_empty(count)
        return torch.empty(count, dtype=like.dtype, pin_memory=like.device.type != "cpu")

    def _element(self, dtype: torch.dtype) -> Any:
        names = {
            torch.uint8: "UINT8_T",
            torch.int8: "INT8_T",
            torch.int16: "INT16_T",
            torch.int32: "INT32_T",
            torch.int64: "INT64_T",
            torch.float32: "FLOAT",
            torch.float64: "DOUBLE",
        }
        if dtype not in names:
            raise ValueError(f"all_reduce on rank {self.rank}: MPI cannot add {dtype}")
        return getattr(self.mpi, names[dtype])


def mpi_world(device: torch.device | None = None, timeout: float = 60.0) -> World:
    """Return the world of all ranks that were started together, for loops of your own; all ranks must call it.

    `timeout` is in seconds, for every call. Starts MPI where it is not started yet. Raises JobError when mpi4py or
    its MPI library is missing.
    """
    mpi = _load()
    # A communicator of our own: other users' messages on COMM_WORLD are not taken for ours.
    everyone = mpi.COMM_WORLD.Dup()
    neighbours = everyone.Split_type(mpi.COMM_TYPE_SHARED)
    local_rank = neighbours.Get_rank()
    neighbours.Free()
    return World(
        rank=everyone.Get_rank(),
        size=everyone.Get_size(),
        local_rank=local_rank,
        node=mpi.Get_processor_name(),
        transport=MpiTransport(everyone, device, timeout),
    )


def _load() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter when no MPI library is found
        raise JobError(f"MPI: {error}; install sparsetrain[mpi]") from error
    return MPI


def _buffer(tensor: Tensor) -> Any:
    """Return what mpi4py takes: an array of the host's memory, or the tensor, which tells where it lies on a GPU."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _raw(tensor: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor, not copied."""
    # One element, or none, counts as contiguous whatever its stride is, and then refuses another view.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
