"""Top-KAST (Jayakumar et al., NeurIPS 2020)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.config.numbers import Fraction, NotNegative
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.pruner import Pruner
from sparsetrain.masks.present import Present


class TopKAST(Pruner):
    """The forward pass uses the largest |w| (set A), a larger top (set B) gets gradients and travels; weights outside
    B keep their value unseen until others shrink below them. Needs nothing more on the wire.

    A penalty lambda (|w| on A, |w| / d on B without A) makes newcomers prove themselves.
    """

    starts_dense = False
    needs_masked_gradients = True
    grows = True
    keeps_dormant = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`extra` is the density of B above A's; `penalty` is lambda."""

        extra: Fraction = 0.1
        penalty: NotNegative = 1e-4

    def initial(self, moment: Moment) -> Tensor:
        """Return the largest |w|."""
        return self.update(moment)

    def candidates(self, moment: Moment) -> Tensor | None:
        """Return all weights, the dormant too."""
        return None

    def update_sparsity(self, sparsity: float) -> float:
        """Return the sparsity of B."""
        return max(0.0, sparsity - self.config.extra)

    def update_set(self, moment: Moment, mask: Tensor) -> Tensor:
        """Return B: the largest |w| of all, `moment.update_count` of them."""
        return mask | moment.layout.top(self.saliency(moment), max(moment.count, moment.update_count))

    def pull(self, present: Present) -> Tensor | None:
        """Return the gradient of the penalty: lambda sign(w) on A, divided by A's density on B without A."""
        mask = present.mask
        density = mask.sum() / mask.numel()
        strength = torch.where(mask, 1.0, 1.0 / density.clamp(min=1.0 / mask.numel()))
        return torch.where(present.update, self.config.penalty * strength * present.weight.sign(), 0.0)
