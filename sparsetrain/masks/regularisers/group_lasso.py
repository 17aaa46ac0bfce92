"""The sum of the norms of units (Yuan and Lin 2006; Wen et al. 2016 for neurons and filters)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import NotNegative
from sparsetrain.masks.present import Present
from sparsetrain.masks.regularisers.base import Regulariser


class GroupLasso(Regulariser):
    """strength x sum over the structure's units of sqrt(size) x norm: a weak unit shrinks as a whole."""

    structures = ("block", "row", "neuron", "head")
    takes_units = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`strength` is the mean square root of what is added to a unit's gradients."""

        strength: NotNegative = 1e-5

    def pull(self, present: Present) -> Tensor:
        """Return strength x w / (root mean square of w's unit), zero where that is zero."""
        assert present.layout is not None
        spread = present.layout.pool(present.weight.double().square()).sqrt()
        factor = torch.where(spread > 0, self.config.strength / spread, 0.0)
        factors = present.layout.expand(factor).to(present.weight.device)
        return (factors * present.weight.double()).to(present.weight.dtype)
