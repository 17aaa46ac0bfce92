"""MEST (Yuan et al., NeurIPS 2021): elastic mutation, and the same with a soft memory bound."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import Fraction, NotNegative
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.regrower import Regrower, keep_best
from sparsetrain.masks.sources import ActiveGradient


class MEST(Regrower):
    """Drops the active weights of smallest |w| + lambda |mean gradient|, grows as many at random. Only gradients of
    active weights cross ranks. Score and soft bound are as recalled from the paper and its authors' page; they have
    not been checked against its text."""

    source = ActiveGradient

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the share dropped at the beginning, it falls as a cosine; `weight` is lambda. With `soft`
        (EM&S) that share is grown above the budget instead, and the next update prunes back to it: what did not prove
        itself goes, old or new. The last update prunes only."""

        drop_fraction: Fraction = 0.3
        weight: NotNegative = 0.01
        soft: bool = False

    def above(self, sparsity: float, progress: float) -> float:
        """See MaskMethod."""
        if not self.config.soft:
            return sparsity
        return max(0.0, 1.0 - (1.0 - sparsity) * (1.0 + self.drop_fraction(progress)))

    def update(self, moment: Moment) -> Tensor:
        """See Regrower; with `soft` the most salient up to the budget, and random others up to the count."""
        if not self.config.soft:
            return super().update(moment)
        keep, grow = self.saliency(moment), self.growth(moment)
        # Nothing is dropped below the budget: the fraction is 0 of as many as the budget allows.
        layout = moment.layout
        kept = keep_best(layout, moment.mask, keep, 0.0, moment.budget)
        return layout.expand(layout.fill(kept, layout.pool(grow), layout.quota(moment.count))).to(moment.mask.device)

    def saliency(self, moment: Moment) -> Tensor:
        """Return |w| + lambda |g|."""
        return moment.weight.abs().double() + self.config.weight * moment.given().abs().double()

    def growth(self, moment: Moment) -> Tensor:
        """Return a random order."""
        return torch.rand(moment.mask.shape, generator=moment.generator, dtype=torch.float64)
