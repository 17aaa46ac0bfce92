"""MEST (Yuan et al., NeurIPS 2021), the variant with elastic mutation."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import Fraction, NotNegative
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.regrower import Regrower
from sparsetrain.masks.sources import ActiveGradient


class MEST(Regrower):
    """Drops the active weights of smallest |w| + lambda |mean gradient|, grows as many at random. Only gradients of
    active weights cross ranks. The score is as recalled from the paper; it has not been checked against its text."""

    source = ActiveGradient

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the share dropped at the beginning, it falls as a cosine; `weight` is lambda."""

        drop_fraction: Fraction = 0.3
        weight: NotNegative = 0.01

    def saliency(self, moment: Moment) -> Tensor:
        """Return |w| + lambda |g|."""
        return moment.weight.abs().double() + self.config.weight * moment.given().abs().double()

    def growth(self, moment: Moment) -> Tensor:
        """Return a random order."""
        return torch.rand(moment.mask.shape, generator=moment.generator, dtype=torch.float64)
