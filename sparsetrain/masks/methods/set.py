"""Sparse evolutionary training (Mocanu et al., Nature Communications 2018)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import Fraction
from sparsetrain.masks.methods.base import MaskMethod, Moment, drop_and_grow
from sparsetrain.masks.schedule import cosine_drop


class SET(MaskMethod):
    """Drops the smallest |w|, grows as many at random. Needs nothing on the wire."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the share dropped at the beginning; it falls as a cosine."""

        drop_fraction: Fraction = 0.3

    def update(self, moment: Moment) -> Tensor:
        """Return the next mask; growth is uniform over all places not kept, exact in number."""
        fraction = cosine_drop(self.config.drop_fraction, moment.progress)
        lots = torch.randperm(moment.mask.numel(), generator=moment.generator).view(moment.mask.shape)
        return drop_and_grow(moment.mask, moment.weight.abs(), lots.to(moment.mask.device), fraction, moment.count)
