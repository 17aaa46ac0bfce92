"""The final sparsity at every update."""

from __future__ import annotations

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.schedule import MaskSchedule


class Constant(MaskSchedule):
    """The final sparsity at every update: for methods that move a mask of fixed size."""

    Config = NoOptions

    def sparsity(self, final: float, step: int) -> float:
        """See MaskSchedule."""
        return final
