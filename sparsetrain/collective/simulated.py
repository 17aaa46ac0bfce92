"""Several ranks in one process, one thread each: exact, deterministic, and quick enough for property tests."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain.collective.transport import Transport
from sparsetrain.collective.world import World


class SimulatedTransport(Transport):
    """One rank of a Simulation; sums are taken in rank order."""

    def __init__(self, rank: int, simulation: Simulation) -> None:
        super().__init__(rank, simulation.size)
        self.simulation = simulation
        self._made = 0

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        return [parts[0].clone() for parts in self._meet([tensor.clone()])]

    def _all_gather_v(self, tensor: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        parts = self._all_gather(tensor)
        parts[self.rank] = tensor
        return parts

    def _all_to_all_v(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        sent = self._meet([part.clone() for part in parts])
        arrived = [each[self.rank].clone() for each in sent]
        arrived[self.rank] = parts[self.rank]
        for source, (part, size) in enumerate(zip(arrived, sizes, strict=True)):
            if source != self.rank and part.numel() != size:
                raise RuntimeError(f"rank {source} sent {part.numel()} elements, expected {size}")
        return arrived

    def _all_reduce(self, tensor: Tensor) -> None:
        first, *others = self._all_gather(tensor)
        for other in others:
            first.add_(other)
        tensor.copy_(first)

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self._all_gather(tensor)[source])

    def _twin(self) -> Transport:
        self._meet([])  # as everywhere, a twin is there when all ranks have asked for it
        self._made += 1
        return SimulatedTransport(self.rank, self.simulation.sibling(self._made - 1))

    def _free(self) -> None:
        return

    def _meet(self, mine: list[Tensor]) -> list[list[Tensor]]:
        """Return every rank's list. A rank's next list waits until all have met again, so readers copy in peace."""
        slots, barrier = self.simulation.slots, self.simulation.barrier
        barrier.wait()
        slots[self.rank] = mine
        barrier.wait()
        return list(slots)


class TurnTaking(SimulatedTransport):
    """A simulated rank that computes only while it holds the token, and lets go of it while it waits for others.

    So no two ranks compute at once: they can share work space, and their time can be measured. Whoever calls must hold
    the token.
    """

    def __init__(self, rank: int, simulation: Simulation, token: threading.Lock) -> None:
        super().__init__(rank, simulation)
        self.token = token

    def _meet(self, mine: list[Tensor]) -> list[list[Tensor]]:
        self.token.release()
        try:
            return super()._meet(mine)
        finally:
            self.token.acquire()


@contextlib.contextmanager
def _on_one_core() -> Generator[None]:
    """Keep this thread, and those that it starts, on one core meanwhile, and torch to one thread a rank.

    Ranks wait for each other at every message and compute under one interpreter lock, which takes many times longer to
    hand from core to core than between threads of one.
    """
    if not hasattr(os, "sched_setaffinity"):  # Linux has it
        yield
        return
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with contextlib.suppress(OSError):  # a sandbox may forbid it: slower, and no less exact
        os.sched_setaffinity(0, {sorted(cores)[os.getpid() % len(cores)]})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)


class Simulation:
    """`run(body)` calls body(world) for each of `size` ranks at once and returns their results in rank order."""

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        self.size = size
        self.timeout = timeout
        self.barrier = threading.Barrier(size, timeout=timeout)
        self.slots: list[list[Tensor]] = [[]] * size
        self.siblings: list[Simulation] = []
        self._lock = threading.Lock()

    def sibling(self, number: int) -> Simulation:
        """Return the simulation behind the twins number `number` of all ranks; the first to ask makes it."""
        with self._lock:
            if number == len(self.siblings):
                self.siblings.append(Simulation(self.size, self.timeout))
            return self.siblings[number]

    def abort(self) -> None:
        """Wake all ranks that wait, here and in all siblings, with a BrokenBarrierError."""
        self.barrier.abort()
        with self._lock:
            siblings = list(self.siblings)
        for sibling in siblings:
            sibling.abort()

    def run(self, body: Callable[[World], Any]) -> list[Any]:
        """Return body(world) of all ranks. Raises what a rank raised, TimeoutError when ranks waited in vain."""
        results: list[Any] = [None] * self.size
        failures: list[BaseException] = []
        waiting: list[int] = []

        def rank_main(rank: int) -> None:
            try:
                results[rank] = body(World(rank=rank, size=self.size, transport=SimulatedTransport(rank, self)))
            except threading.BrokenBarrierError:
                waiting.append(rank)  # if another rank failed, its exception is the one to show
                self.abort()
            except BaseException as error:
                failures.append(error)
                self.abort()

        threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(self.size)]
        with _on_one_core():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        if waiting:
            raise TimeoutError(f"simulated ranks {sorted(waiting)} waited for others that did not come")
        return results
