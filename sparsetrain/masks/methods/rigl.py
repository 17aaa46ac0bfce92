"""RigL: rigging the lottery (Evci et al., ICML 2020)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.config.numbers import Fraction
from sparsetrain.masks.methods.base import MaskMethod, Moment, drop_and_grow
from sparsetrain.masks.schedule import cosine_drop


class RigL(MaskMethod):
    """Drops the smallest |w|, grows where |mean gradient| is largest. One dense mean gradient per update."""

    scores = "mean_gradient"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the paper's alpha; it falls as a cosine."""

        drop_fraction: Fraction = 0.3

    def update(self, moment: Moment) -> Tensor:
        """Return the next mask. Raises ValueError without a mean gradient."""
        if moment.gradient is None:
            raise ValueError("RigL needs the mean gradient")
        fraction = cosine_drop(self.config.drop_fraction, moment.progress)
        return drop_and_grow(moment.mask, moment.weight.abs(), moment.gradient.abs(), fraction, moment.count)
