"""Several ranks in one process, one thread each: exact, deterministic, and quick enough for property tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
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

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        slots, barrier = self.simulation.slots, self.simulation.barrier
        slots[self.rank] = tensor.clone()
        barrier.wait()
        parts = [slot.clone() for slot in slots]
        barrier.wait()
        return parts

    def _all_reduce(self, tensor: Tensor) -> None:
        first, *others = self._all_gather(tensor)
        for other in others:
            first.add_(other)
        tensor.copy_(first)

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self._all_gather(tensor)[source])


class Simulation:
    """`run(body)` calls body(world) for each of `size` ranks at once and returns their results in rank order."""

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=timeout)
        self.slots: list[Tensor] = [torch.empty(0)] * size

    def run(self, body: Callable[[World], Any]) -> list[Any]:
        results: list[Any] = [None] * self.size
        failures: list[BaseException] = []

        def rank_main(rank: int) -> None:
            try:
                results[rank] = body(World(rank=rank, size=self.size, transport=SimulatedTransport(rank, self)))
            except threading.BrokenBarrierError:
                return  # another rank failed; its exception is the one to show
            except BaseException as error:
                failures.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results
