"""Loss spikes: when the mean loss jumps, the run can go back to a checkpoint and take the data in another order.

Off unless the job says how large a jump is (`train.spike`). The recipe is that of PaLM (Chowdhery et al. 2022, section
5.1): go back some steps and leave out the batches that led there; here the order of the data changes.
"""

from __future__ import annotations

import math

DECAY = 0.9  # of the running mean, per row
KNOWN = 5  # rows before which nothing is a spike


class Spikes:
    """Watches the mean loss, which all ranks know alike, so all come to the same."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.mean = 0.0
        self.rows = 0

    def see(self, loss: float) -> bool:
        """Return whether `loss` is a spike; if not, it becomes part of what is usual."""
        if not self.factor:
            return False
        if self.rows >= KNOWN and not loss <= self.factor * self.mean:
            return True
        if math.isfinite(loss):
            self.mean = loss if not self.rows else DECAY * self.mean + (1 - DECAY) * loss
            self.rows += 1
        return False
