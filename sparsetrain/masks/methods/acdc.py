"""Alternating compressed and decompressed training (AC/DC, Peste et al., NeurIPS 2021)."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.pruner import Pruner


class ACDC(Pruner):
    """Dense and sparse phases in turn: each sparse phase keeps the largest |w|, each dense one begins with zeros in
    the other places and no momentum. Needs nothing on the wire for its masks; gradients travel dense in dense phases.
    """

    Config = NoOptions

    schedule = "phases"
    grows = True

    def candidates(self, moment: Moment) -> Tensor | None:
        """Return all weights: a dense phase opens every place."""
        return None

    def forgets(self, old_sparsity: float, new_sparsity: float) -> bool:
        """Return True where a dense phase begins."""
        return new_sparsity < old_sparsity
