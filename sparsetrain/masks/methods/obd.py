"""Optimal brain damage (LeCun, Denker, Solla, NeurIPS 1989) with a diagonal Fisher matrix."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.config.numbers import Few
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.pruner import Pruner
from sparsetrain.masks.sources import Curvature


class OBD(Pruner):
    """Gradual pruning by 1/2 H_ii w_i^2, the loss that a weight's removal costs to second order; H_ii is the mean
    squared gradient of the last steps before an update."""

    source = Curvature
    schedule = "cubic"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`window` is the number of steps whose mean gradients are squared; each costs a dense all-reduce."""

        window: Few = 8

    def saliency(self, moment: Moment) -> Tensor:
        """Return 1/2 H w^2."""
        return 0.5 * moment.given().double() * moment.weight.double().square()
