"""Gradual magnitude pruning (Zhu and Gupta 2017): from dense to sparse along a cubic ramp."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.masks.methods.base import MaskMethod, Moment
from sparsetrain.masks.schedule import cubic
from sparsetrain.masks.select import top


class GMP(MaskMethod):
    """Gradual magnitude pruning: starts dense, keeps the largest |w| at a sparsity that rises as a cubic."""

    starts_dense = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    def sparsity(self, final: float, ramp: float) -> float:
        """Return the cubic ramp from 0 to `final`; the last update reaches it exactly."""
        return cubic(final, ramp)

    def update(self, moment: Moment) -> Tensor:
        """Return the active weights of largest magnitude; what is pruned stays pruned."""
        count = min(moment.count, int(moment.mask.sum()))
        return top(moment.weight.abs(), count, among=moment.mask)
