"""GraNet: gradual pruning with zero-cost neuroregeneration (Liu et al., NeurIPS 2021)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.config.numbers import Fraction
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.regrower import Regrower
from sparsetrain.masks.sources import MeanGradient


class GraNet(Regrower):
    """Prunes by |w| along a cubic ramp, as gmp, and at every update also drops the smallest |w| of what is left and
    grows as many where |mean gradient| is largest. One dense mean gradient an update. The rule is as recalled from the
    paper; it has not been checked against its text."""

    source = MeanGradient
    needs_masked_gradients = True
    schedule = "cubic"
    starts_dense = True
    ranks_globally = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the share of what is left that is dropped and grown again at the beginning; it falls as a
        cosine."""

        drop_fraction: Fraction = 0.5

    def growth(self, moment: Moment) -> Tensor:
        """Return |mean gradient|."""
        return moment.given().abs()

    def update(self, moment: Moment) -> Tensor:
        """Return the next mask: pruned to the count first, then regrown."""
        among = self.candidates(moment)
        assert among is not None
        pruned = moment.layout.top(self.saliency(moment), min(moment.count, int(among.sum())), among)
        return super().update(dataclasses.replace(moment, mask=pruned))
