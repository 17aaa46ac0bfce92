"""SR-STE (Zhou et al., Learning N:M fine-grained structured sparse networks from scratch, ICLR 2021)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import NotNegative
from sparsetrain.masks.methods.dnw import DNW
from sparsetrain.masks.present import Present


class SRSTE(DNW):
    """Keeps the largest |w| of each group anew at every update (masks.every: 1 is the paper's); all weights get the
    straight-through gradient, and the ones left out decay: gradient + lambda (1 - mask) w."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:  # pyrefly: ignore[bad-override]
        """`decay` is the paper's lambda; it pulls weights outside the forward set to zero."""

        decay: NotNegative = 2e-4

    def pull(self, present: Present) -> Tensor | None:
        """Return lambda (1 - mask) w."""
        return torch.where(present.mask, 0.0, self.config.decay * present.weight)
