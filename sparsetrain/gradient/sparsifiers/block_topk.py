"""Keep the largest of each block: no block waits for another."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.config.numbers import Positive
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier
from sparsetrain.kernels.select import select


class BlockTopK(Sparsifier):
    """Exact top-k inside blocks, each with its share of k. Small blocks lose the signal; `grad/energy` shows it.

    On gradients of a GPT, blocks of 128-1024 kept 5-17 % of the energy of a global top-k, 65536 kept 75-97 %.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`block`: coordinates per block."""

        block: Positive = 1 << 16

    def select(self, old: Tensor | None, buffer: Tensor, ask: Ask) -> Entries:
        """See Sparsifier: exactly k entries, spread over the blocks as evenly as whole numbers allow."""
        size, block = buffer.numel(), self.config.block
        indices, values, finite = [], [], True
        for start in range(0, size, block):
            end = min(start + block, size)
            share = ask.k * end // size - ask.k * start // size
            part = None if old is None else old[start:end]
            # A block without a share is compensated all the same.
            chosen = select(part, buffer[start:end], max(1, share), scale=ask.scale)
            finite = finite and chosen.finite
            if share:
                indices.append(chosen.indices + start)
                values.append(chosen.values)
            else:
                buffer[start:end].index_add_(0, chosen.indices, chosen.values)
        return Entries(torch.cat(indices), torch.cat(values), asked=ask.k, finite=finite)
