"""Methods whose backward pass sees all weights, as if the forward pass did."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.pruner import Pruner


class StraightThrough(Pruner):
    """The forward set is chosen among all weights anew at every update; all weights get gradients and travel."""

    grows = True

    def candidates(self, moment: Moment) -> Tensor | None:
        """Return all weights."""
        return None

    def update_sparsity(self, sparsity: float) -> float:
        """Return 0."""
        return 0.0

    def update_set(self, moment: Moment, mask: Tensor) -> Tensor:
        """Return all weights."""
        return torch.ones_like(mask)
