"""Sparse evolutionary training (Mocanu et al., Nature Communications 2018)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import Fraction
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.regrower import Regrower


class SET(Regrower):
    """Drops the smallest |w|, grows as many at random. Needs nothing on the wire."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the share dropped at the beginning; it falls as a cosine."""

        drop_fraction: Fraction = 0.3

    def growth(self, moment: Moment) -> Tensor:
        """Return a random order: growth is uniform over all places not kept, exact in number."""
        return torch.rand(moment.mask.shape, generator=moment.generator, dtype=torch.float64)
