"""Messages to some of the ranks, of lengths that only the senders know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sparsetrain.collective.payload import CorruptPayload
from sparsetrain.collective.transport import Transport


def send(parts: Mapping[int, Tensor], sources: Mapping[int, int], transport: Transport) -> dict[int, Tensor]:
    """Send parts[r] to rank r and return what comes from the `sources` (rank -> elements), by rank.

    Parts are 1-D, of one dtype on all ranks where there are any. Who is in neither list costs nothing. Collective: all
    ranks must call it, those that have nothing to say too.
    """
    first = next(iter(parts.values()), torch.empty(0, dtype=torch.uint8, device=transport.device))
    nothing = first[:0]
    dense = [parts.get(rank, nothing) for rank in range(transport.size)]
    dense[transport.rank] = nothing
    sizes = [sources.get(rank, 0) for rank in range(transport.size)]
    sizes[transport.rank] = 0
    arrived = transport.all_to_all_v(dense, "gradient", sizes)
    return {rank: arrived[rank] for rank in sources if rank != transport.rank}


def send_v(
    parts: Mapping[int, Tensor], sources: Iterable[int], largest: int, transport: Transport
) -> dict[int, Tensor]:
    """Do what `send` does where the lengths are not known: they travel ahead, 8 bytes each. Raises CorruptPayload where
    a rank announces more than `largest` elements."""
    lengths = {rank: torch.tensor([part.numel()], device=transport.device) for rank, part in parts.items()}
    if not lengths:  # the dtype of what comes
        lengths = {transport.rank: torch.zeros(1, dtype=torch.int64, device=transport.device)}
    told = {rank: int(each) for rank, each in send(lengths, dict.fromkeys(sources, 1), transport).items()}
    for rank, length in told.items():
        if not 0 <= length <= largest:
            raise CorruptPayload(f"rank {rank} is about to send {length} elements; at most {largest} are taken")
    return send(parts, told, transport)
