"""RigL: rigging the lottery (Evci et al., ICML 2020)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.config.numbers import Fraction
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.regrower import Regrower
from sparsetrain.masks.sources import MeanGradient


class RigL(Regrower):
    """Drops the smallest |w|, grows where |mean gradient| is largest. One dense mean gradient per update."""

    source = MeanGradient

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the paper's alpha; it falls as a cosine."""

        drop_fraction: Fraction = 0.3

    def growth(self, moment: Moment) -> Tensor:
        """Return |mean gradient|."""
        return moment.given().abs()
