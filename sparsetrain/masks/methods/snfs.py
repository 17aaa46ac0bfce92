"""Sparse networks from scratch: sparse momentum (Dettmers and Zettlemoyer 2019, arXiv 1907.04840)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from sparsetrain.config.numbers import BelowOne, Fraction
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.regrower import Regrower
from sparsetrain.masks.reallocation import STRUCTURES, reallocated
from sparsetrain.masks.sources import Accumulated


class SNFS(Regrower):
    """Drops the smallest |w| of each layer, hands what is free to the layers in proportion to the mean |momentum| of
    their active weights, and grows where |momentum| is largest; the total is exact.

    The momentum is a moving average of dense gradients, not the optimizer's, which knows nothing of inactive weights.
    Each rank keeps its own, and one dense mean an update makes it the average of the mean gradients: it is linear.
    """

    source = Accumulated
    needs_masked_gradients = True
    structures = STRUCTURES

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the share dropped at the beginning, it falls as a cosine; `momentum` is what a step
        leaves of the average."""

        drop_fraction: Fraction = 0.3
        momentum: BelowOne = 0.9

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.decay = config.momentum

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return (1 - momentum) g, in fp32."""
        return (1.0 - self.decay) * gradient.float()

    def allocate(self, moments: Mapping[str, Moment], counts: dict[str, int]) -> dict[str, int]:
        """See MaskMethod; without momentum anywhere, room decides."""
        kept, wishes = {}, {}
        for name, moment in moments.items():
            active = moment.layout.active(moment.mask)
            units = int(active.sum())
            kept[name] = units - int(self.drop_fraction(moment.progress) * units)
            wishes[name] = float(moment.layout.pool(self.growth(moment))[active].mean()) if units else 0.0
        return reallocated(moments, counts, kept, wishes)

    def growth(self, moment: Moment) -> Tensor:
        """Return |momentum|."""
        return moment.given().abs()
