"""Memory for results that is used again: the first touch of fresh pages can take as long as a whole selection."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 16  # bytes: below, the allocator's own free lists serve
KEPT = 8  # free blocks; more than the selections that a step has in flight
ALIGNED = 64


class Blocks:
    """Hands out pairs of tensors whose memory comes back when nobody holds a view of either any more."""

    def __init__(self) -> None:
        self.free: dict[int, np.ndarray] = {}

    def pair(self, count: int) -> tuple[Tensor, Tensor]:
        """Return uninitialised int32 [count] and fp32 [count] that share a block."""
        each = (4 * count + ALIGNED - 1) // ALIGNED * ALIGNED
        if each < SMALL:
            kinds = (torch.int32, torch.float32)
            indices, values = (torch.empty(count, dtype=kind, device="cpu") for kind in kinds)
            return indices, values
        block = self._take(2 * each)
        # The tensors keep this view alive, and it alone: its end is the end of all of them.
        lease = block[: 2 * each]
        weakref.finalize(lease, self._give_back, block)
        whole = torch.from_numpy(lease)
        return whole[: 4 * count].view(torch.int32), whole[each : each + 4 * count].view(torch.float32)

    def _take(self, size: int) -> np.ndarray:
        for key, block in list(self.free.items()):
            # Another thread may have taken it since.
            if size <= block.size <= 2 * size and self.free.pop(key, None) is not None:
                return block
        return np.empty(size, dtype=np.uint8)

    def _give_back(self, block: np.ndarray) -> None:
        self.free[id(block)] = block
        for key in list(self.free)[:-KEPT]:
            self.free.pop(key, None)
