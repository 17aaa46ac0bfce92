"""Ways to make the mean of a gradient over ranks: what users do without us, the rival, and our own exchange.

All get the same gradient and leave the mean in fp32. The sparse ones and PowerSGD keep what they did not send.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsetrain.bench.synthetic import Gradient
from sparsetrain.collective.collective import Volume
from sparsetrain.collective.transport import Transport
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.density import entries
from sparsetrain.gradient.exchange import GradientExchange


class Candidate(abc.ABC):
    """One way over one transport, whose meter counts its bytes alone. All ranks must call the same methods."""

    def __init__(self, gradient: Gradient, transport: Transport) -> None:
        self.gradient = gradient
        self.transport = transport
        self.ranks = transport.size

    def prepare(self) -> None:
        """Get ready for `exchange`, outside the timed part."""
        return

    @abc.abstractmethod
    def exchange(self) -> Mapping[str, Tensor]:
        """Return the mean by name (fp32), or what this way takes for it; valid until the next call."""

    @abc.abstractmethod
    def volume(self) -> Volume:
        """Return what one call puts on the wire of one rank, from its formula."""

    def close(self) -> None:
        """Free threads and groups."""
        return


class Dense(Candidate):
    """All-reduce of the flat gradient; in a shorter type it is cast there and back, and partial sums are rounded."""

    def __init__(self, gradient: Gradient, transport: Transport, dtype: torch.dtype) -> None:
        super().__init__(gradient, transport)
        self.dtype = dtype
        self.work = torch.empty_like(gradient.flat)

    def prepare(self) -> None:
        self.work.copy_(self.gradient.flat)  # the all-reduce works in place

    def exchange(self) -> Mapping[str, Tensor]:
        short = self.work.to(self.dtype)  # the same tensor for fp32
        self.transport.all_reduce(short, "gradient")
        self.work.copy_(short).div_(self.ranks)
        return self.gradient.split(self.work)

    def volume(self) -> Volume:
        return ring(self.gradient.size * self.dtype.itemsize, self.ranks)


class Naive(Candidate):
    """Error feedback with torch.topk over everything, an all-gather of int64 places, one of values, index_add."""

    def __init__(self, gradient: Gradient, transport: Transport, density: float) -> None:
        super().__init__(gradient, transport)
        self.k = entries(density, gradient.size)
        self.residual = torch.zeros_like(gradient.flat)

    def exchange(self) -> Mapping[str, Tensor]:
        total = self.residual + self.gradient.flat
        places = torch.topk(total.abs(), self.k, sorted=False).indices
        values = total[places]
        total[places] = 0.0
        self.residual = total
        mean = torch.zeros_like(total)
        all_places = self.transport.all_gather(places, "gradient")
        for at, value in zip(all_places, self.transport.all_gather(values, "gradient"), strict=True):
            mean.index_add_(0, at, value)
        return self.gradient.split(mean.div_(self.ranks))

    def volume(self) -> Volume:
        return Volume(self.k * 12 * (self.ranks - 1), 2 * math.ceil(math.log2(self.ranks)))


class PowerSGD(Candidate):
    """Rank-r approximation with error feedback and warm start (Vogels et al., NeurIPS 2019, algorithms 1 and 2).

    The matrices have one shape here, so they are handled as one batch, which flatters it a little.
    """

    def __init__(self, gradient: Gradient, transport: Transport, rank: int) -> None:
        super().__init__(gradient, transport)
        self.residual = torch.zeros_like(gradient.flat)
        seeded = torch.Generator().manual_seed(0)  # all ranks must begin with the same
        self.right = torch.randn(gradient.count, gradient.columns, rank, generator=seeded)

    def exchange(self) -> Mapping[str, Tensor]:
        matrices = (self.residual + self.gradient.flat).view(self.gradient.count, -1, self.gradient.columns)
        left = torch.bmm(matrices, self.right)
        self.transport.all_reduce(left, "gradient")
        left = torch.linalg.qr(left).Q
        self.right = torch.bmm(matrices.transpose(1, 2), left)
        self.transport.all_reduce(self.right, "gradient")
        self.right = self.right.div_(self.ranks)
        mean = torch.bmm(left, self.right.transpose(1, 2))
        self.residual = torch.sub(matrices, mean, out=matrices).view(-1)
        return self.gradient.split(mean.view(-1))

    def volume(self) -> Volume:
        first = self.gradient.count * self.gradient.rows * self.right.shape[2] * 4
        one, two = ring(first, self.ranks), ring(self.right.nbytes, self.ranks)
        return Volume(one.bytes + two.bytes, one.messages + two.messages)


class Ours(Candidate):
    """GradientExchange with the given settings of a job's `exchange` section."""

    def __init__(self, gradient: Gradient, transport: Transport, settings: Mapping[str, Any]) -> None:
        super().__init__(gradient, transport)
        world = World(rank=transport.rank, size=transport.size, local_rank=transport.rank, transport=transport)
        config = adapter(Exchange).validate_python(dict(settings))
        self.run = GradientExchange(config, gradient.shapes, world, steps=1)

    def exchange(self) -> Mapping[str, Tensor]:
        mean = self.run.aggregate(self.gradient.named)
        if mean is None:
            raise RuntimeError("the exchange was skipped: a gradient is not finite")
        return mean

    def volume(self) -> Volume:
        pairs = zip(self.run.channels, self.run.regimes, strict=True)
        parts = [regime.volume(channel, self.ranks, self.run.config.density) for channel, regime in pairs]
        return Volume(sum(part.bytes for part in parts), sum(part.messages for part in parts))

    def close(self) -> None:
        self.run.close()


def ring(size: float, ranks: int) -> Volume:
    """Return the volume of an all-reduce of `size` bytes in a ring."""
    return Volume(2 * size * (ranks - 1) / ranks, 2 * (ranks - 1))


# Every place with both kinds of values once, and each collective with the shortest message.
SPARSE: dict[str, dict[str, Any]] = {
    "allgather int32 bf16": {"collective": "allgather", "indices": "int32", "values": "bf16"},
    "allgather auto bf16": {"collective": "allgather", "indices": "auto", "values": "bf16"},
    # Fewer messages, at the price that less of the gradient can leave before backward ends.
    "allgather auto bf16, 8 M": {"indices": "auto", "values": "bf16", "bucket_elements": 1 << 23},
    "allgather auto int8": {"collective": "allgather", "indices": "auto", "values": "int8"},
    "split_reduce auto int8": {"collective": "split_reduce", "indices": "auto", "values": "int8"},
    "ok_topk auto bf16": {"collective": "ok_topk", "indices": "auto", "values": "bf16"},
    "ok_topk auto int8": {"collective": "ok_topk", "indices": "auto", "values": "int8"},
    "gtopk elias_fano int8": {"collective": "gtopk", "indices": "elias_fano", "values": "int8"},
    "recursive_doubling auto int8": {"collective": "recursive_doubling", "indices": "auto", "values": "int8"},
    "packed randomk bf16": {"sparsifier": "randomk", "collective": "packed", "values": "bf16"},
    "lowrank rank 4": {"regime": "lowrank", "rank": 4},
}
