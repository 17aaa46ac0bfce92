"""Hoyer-square (Yang, Wen, Li: DeepHoyer, ICLR 2020)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import NotNegative
from sparsetrain.masks.present import Present
from sparsetrain.masks.regularisers.base import Regulariser


class Hoyer(Regulariser):
    """strength x (sum |w|)^2 / sum w^2 of each tensor: small weights shrink, large ones grow.

    The quotient lies between 1 and the number of weights, whatever their scale.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`strength` times a number of weights is added to the loss."""

        strength: NotNegative = 1e-6

    def pull(self, present: Present) -> Tensor:
        """Return strength x 2 S / Q x (sign(w) - S / Q x w), S = sum |w|, Q = sum w^2; zero where Q is zero."""
        weight = present.weight.double()
        total, square = weight.abs().sum(), weight.square().sum()
        ratio = torch.where(square > 0, total / square, 0.0)
        return (2.0 * self.config.strength * ratio * (weight.sign() - ratio * weight)).to(present.weight.dtype)
