"""The few calls through which every byte crosses ranks. Each counts what this rank puts on the wire."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.collective.meter import ByteMeter, Kind


class Transport(abc.ABC):
    """Collectives over `size` ranks. All ranks must call the same methods in the same order with equal shapes."""

    def __init__(self, rank: int, size: int, device: torch.device | None = None) -> None:
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")
        self.meter = ByteMeter()

    def all_reduce(self, tensor: Tensor, kind: Kind) -> None:
        """Replace `tensor` (contiguous) by its sum over ranks: 2 n (P-1) / P elements sent in a ring."""
        if self.size == 1:
            return
        self.meter.add(kind, 2 * tensor.nbytes * (self.size - 1) / self.size)
        self._all_reduce(tensor)

    def all_gather(self, tensor: Tensor, kind: Kind) -> list[Tensor]:
        """Return the tensors of all ranks, in rank order; shapes must be equal. n (P-1) elements sent."""
        if self.size == 1:
            return [tensor]
        self.meter.add(kind, tensor.nbytes * (self.size - 1))
        return self._all_gather(tensor.contiguous())

    def mean(self, tensors: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
        """Return the means over ranks by name, fp32: one dense all-reduce of all of them together."""
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors.values()])
        self.all_reduce(flat, kind)
        pieces = flat.div_(self.size).split([tensor.numel() for tensor in tensors.values()])
        return {name: piece.view_as(tensors[name]) for name, piece in zip(tensors, pieces, strict=True)}

    def broadcast(self, tensor: Tensor, kind: Kind, source: int = 0) -> None:
        """Replace `tensor` by the source rank's; the source's n (P-1) elements are booked on the source."""
        if self.size == 1:
            return
        if self.rank == source:
            self.meter.add(kind, tensor.nbytes * (self.size - 1))
        self._broadcast(tensor, source)

    def rank_ordered_sum(self, tensor: Tensor, kind: Kind) -> Tensor:
        """Return the sum over ranks added in rank order: the same bits on every transport. For small tensors."""
        first, *others = self.all_gather(tensor, kind)
        total = first.clone()
        for other in others:
            total.add_(other)
        return total

    def gather_bytes(self, data: bytes, kind: Kind = "control") -> list[bytes]:
        """Return the byte strings of all ranks, in rank order; lengths may differ."""
        if self.size == 1:
            return [data]
        length = torch.tensor([len(data)], dtype=torch.int64, device=self.device)
        lengths = [int(item) for item in self.all_gather(length, kind)]
        padded = torch.zeros(max(*lengths, 1), dtype=torch.uint8, device=self.device)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        parts = self.all_gather(padded, kind)
        return [bytes(part[:size].cpu().numpy()) for part, size in zip(parts, lengths, strict=True)]

    def barrier(self) -> None:
        """Return when all ranks have arrived."""
        self.all_gather(torch.zeros(1, dtype=torch.uint8, device=self.device), "control")

    @abc.abstractmethod
    def _all_reduce(self, tensor: Tensor) -> None: ...

    @abc.abstractmethod
    def _all_gather(self, tensor: Tensor) -> list[Tensor]: ...

    @abc.abstractmethod
    def _broadcast(self, tensor: Tensor, source: int) -> None: ...


class Alone(Transport):
    """The transport of a single rank: nothing crosses anything."""

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(0, 1, device)

    def _all_reduce(self, tensor: Tensor) -> None:
        return

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        return
