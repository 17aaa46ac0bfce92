"""The sum of absolute values (lasso, Tibshirani 1996)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.config.numbers import NotNegative
from sparsetrain.masks.present import Present
from sparsetrain.masks.regularisers.base import Regulariser


class L1(Regulariser):
    """strength x sum |w|: all weights are pulled to zero alike."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`strength` is what is added to each weight's gradient, with its sign."""

        strength: NotNegative = 1e-5

    def pull(self, present: Present) -> Tensor:
        """Return strength x sign(w)."""
        return self.config.strength * present.weight.sign()
