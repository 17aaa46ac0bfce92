"""The few calls through which every byte crosses ranks. Each counts what this rank puts on the wire."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sparsetrain.collective.meter import ByteMeter, Kind

LENGTH = 8  # bytes of a length that travels ahead of its data
LARGEST = 16 << 31  # elements that a rank may announce: payload.LONGEST bytes for each place of the largest bucket


class PeerLost(RuntimeError):
    """Another rank is gone, does not answer within the limit, or this rank has been cut off: no call on this transport
    will succeed any more, and what was under way may have arrived at some ranks only."""


class Transport(abc.ABC):
    """Collectives over `size` ranks. All ranks must call the same methods in the same order with equal dtypes, and
    with equal shapes where the method does not say otherwise. One thread at a time; another thread takes a `twin`.

    Tensors may be strided and may require grad: what travels is detached and in index order.
    """

    def __init__(self, rank: int, size: int, device: torch.device | None = None) -> None:
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")
        self.meter = ByteMeter()
        self._twins: list[Transport] = []
        self._is_twin = False
        self._closed = False

    def all_reduce(self, tensor: Tensor, kind: Kind) -> None:
        """Replace `tensor` by its sum over ranks: 2 n (P-1) / P elements sent in a ring."""
        self._book(kind, 2 * tensor.nbytes * (self.size - 1) / self.size)
        if self.size == 1:
            return
        whole = tensor.detach().contiguous()
        self._all_reduce(whole)
        _put_back(whole, tensor)

    def all_gather(self, tensor: Tensor, kind: Kind) -> list[Tensor]:
        """Return the tensors of all ranks, in rank order; shapes must be equal. n (P-1) elements sent."""
        self._book(kind, tensor.nbytes * (self.size - 1))
        if self.size == 1:
            return [tensor]
        return self._all_gather(tensor.detach().contiguous())

    def all_gather_v(self, tensor: Tensor, kind: Kind, lengths: Sequence[int] | None = None) -> list[Tensor]:
        """Return the 1-D tensors of all ranks, in rank order, the own one not copied; lengths may differ and be zero.

        `lengths` are the elements of every rank's tensor; without it they travel ahead. All ranks must give it, or
        none. n (P-1) elements sent without padding, and 8 (P-1) bytes without `lengths`. `all_gather` is quicker where
        lengths are equal. Raises ValueError when the tensor is not 1-D, or `lengths` are not what this says.
        """
        own = _flat(tensor)
        if lengths is not None and (len(lengths) != self.size or lengths[self.rank] != own.numel()):
            raise ValueError(f"lengths {list(lengths)} for {self.size} ranks and {own.numel()} elements of this one")
        self._book(kind, (own.nbytes + (LENGTH if lengths is None else 0)) * (self.size - 1))
        if self.size == 1:
            return [own]
        return self._all_gather_v(own, self._sizes([own] * self.size) if lengths is None else lengths)

    def all_to_all_v(self, parts: Sequence[Tensor], kind: Kind, sizes: Sequence[int] | None = None) -> list[Tensor]:
        """Send parts[r] to rank r; return what each rank sent here, in rank order, the own part not copied.

        The parts are 1-D of any lengths, zero included. `sizes` are the elements that each rank sends here; without
        it lengths travel ahead. All ranks must give it, or none. All elements of other ranks' parts are sent, and
        8 (P-1) bytes without `sizes`. Raises ValueError when parts or sizes are not what this says.
        """
        if len(parts) != self.size or len({part.dtype for part in parts}) != 1:
            raise ValueError(f"{len(parts)} parts, expected {self.size} of one dtype")
        if sizes is not None and len(sizes) != self.size:
            raise ValueError(f"{len(sizes)} sizes, expected {self.size}")
        flat = [_flat(part) for part in parts]
        others = sum(part.nbytes for rank, part in enumerate(flat) if rank != self.rank)
        self._book(kind, others + (LENGTH * (self.size - 1) if sizes is None else 0))
        if self.size == 1:
            return flat
        return self._all_to_all_v(flat, self._sizes(flat) if sizes is None else sizes)

    def mean(self, tensors: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
        """Return the means over ranks by name, fp32: one dense all-reduce of all of them together."""
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors.values()])
        self.all_reduce(flat, kind)
        pieces = flat.div_(self.size).split([tensor.numel() for tensor in tensors.values()])
        return {name: piece.view_as(tensors[name]) for name, piece in zip(tensors, pieces, strict=True)}

    def broadcast(self, tensor: Tensor, kind: Kind, source: int = 0) -> None:
        """Replace `tensor` by the source rank's; the source's n (P-1) elements are booked on the source."""
        self._book(kind, tensor.nbytes * (self.size - 1) if self.rank == source else 0)
        if self.size == 1:
            return
        whole = tensor.detach().contiguous()
        self._broadcast(whole, source)
        _put_back(whole, tensor)

    def rank_ordered_sum(self, tensor: Tensor, kind: Kind) -> Tensor:
        """Return the sum over ranks added in rank order: the same bits on every transport. For small tensors."""
        first, *others = self.all_gather(tensor, kind)
        total = first.clone()
        for other in others:
            total.add_(other)
        return total

    def gather_bytes(self, data: bytes, kind: Kind = "control") -> list[bytes]:
        """Return the byte strings of all ranks, in rank order; lengths may differ. (8 + n) (P-1) bytes sent."""
        if self.size == 1:
            return [data]
        own = torch.from_numpy(np.array(bytearray(data))).to(self.device)
        return [bytes(part.cpu().numpy()) for part in self.all_gather_v(own, kind)]

    def barrier(self) -> None:
        """Return when all ranks have arrived."""
        self.all_gather(torch.zeros(1, dtype=torch.uint8, device=self.device), "control")

    def twin(self) -> Transport:
        """Return another transport over the same ranks, for another thread; both book on the same meter.

        All ranks must call it. Whoever takes it closes it; closing this transport closes it too.
        """
        other = self._twin()
        other.meter = self.meter
        other._is_twin = True
        self._twins.append(other)
        return other

    def close(self) -> None:
        """Free the twins taken here and, on a twin, its own way to the others. May be called again.

        All ranks must call it, when no call is under way. A closed twin raises RuntimeError when used.
        """
        while self._twins:
            self._twins.pop().close()
        if self._is_twin and not self._closed:
            self._closed = True
            self._free()

    def cut(self) -> None:
        """End every call that is under way here, in whatever thread, with PeerLost; may be called from any thread.

        Nothing happens where a transport has no way to do so: its time limit then ends them.
        """
        return

    def _book(self, kind: Kind, count: float) -> None:
        if self._closed:
            raise RuntimeError("this transport is closed")
        self.meter.add(kind, count)

    def _sizes(self, parts: Sequence[Tensor]) -> list[int]:
        """Return how many elements each rank sends here."""
        lengths = [torch.tensor([part.numel()], dtype=torch.int64, device=part.device) for part in parts]
        found: list[int] = torch.cat(self._all_to_all_v(lengths, [1] * self.size)).tolist()
        for rank, length in enumerate(found):
            if not 0 <= length <= LARGEST:
                raise ValueError(f"rank {rank} is about to send {length} elements; at most {LARGEST} are taken")
        return found

    # What follows gets detached, contiguous tensors and books nothing.

    @abc.abstractmethod
    def _all_reduce(self, tensor: Tensor) -> None: ...

    @abc.abstractmethod
    def _all_gather(self, tensor: Tensor) -> list[Tensor]: ...

    @abc.abstractmethod
    def _all_gather_v(self, tensor: Tensor, lengths: Sequence[int]) -> list[Tensor]: ...

    @abc.abstractmethod
    def _all_to_all_v(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]: ...

    @abc.abstractmethod
    def _broadcast(self, tensor: Tensor, source: int) -> None: ...

    @abc.abstractmethod
    def _twin(self) -> Transport: ...

    @abc.abstractmethod
    def _free(self) -> None: ...


class Alone(Transport):
    """The transport of a single rank: nothing crosses anything."""

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(0, 1, device)

    def _all_reduce(self, tensor: Tensor) -> None:
        return

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def _all_gather_v(self, tensor: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return [tensor]

    def _all_to_all_v(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        return list(parts)

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        return

    def _twin(self) -> Transport:
        return Alone(self.device)

    def _free(self) -> None:
        return


def _flat(tensor: Tensor) -> Tensor:
    if tensor.dim() != 1:
        raise ValueError(f"a tensor of shape {list(tensor.shape)} where one of one dimension is expected")
    return tensor.detach().contiguous()


def _put_back(result: Tensor, tensor: Tensor) -> None:
    """Give a strided tensor the result that its contiguous copy has received."""
    if not tensor.is_contiguous():
        tensor.detach().copy_(result)
