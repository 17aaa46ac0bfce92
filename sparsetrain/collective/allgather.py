"""All ranks' payloads to all ranks, summed in rank order. Volume per rank k (P-1) entries; best up to about 8 ranks."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.collective.payload import Payload, decode
from sparsetrain.collective.world import World


class AllGather:
    """Send k entries to every rank, sum all P payloads in rank order: the same bits everywhere."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def exchange(self, payload: Payload, world: World) -> tuple[Tensor, Tensor | None]:
        """Return (mean fp32 [size], leftover). Nothing is dropped on the way, so the leftover is None.

        All ranks must call it with equal k. Raises CorruptPayload when a message does not match.
        """
        messages = world.transport.all_gather(payload.encode(), "gradient")
        decoded = [decode(message, payload, source) for source, message in enumerate(messages)]
        mean = torch.zeros(payload.size, dtype=torch.float32, device=payload.values.device)
        for indices, values in decoded:
            # Indices are unique inside one source, so this addition has only one order.
            mean.index_add_(0, indices, values)
        return mean.div_(world.size), None
