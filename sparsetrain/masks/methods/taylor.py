"""First-order Taylor pruning (Molchanov et al., CVPR 2019)."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.pruner import Pruner
from sparsetrain.masks.sources import MeanGradient


class Taylor(Pruner):
    """Gradual pruning by (w x mean gradient)^2, the squared first-order change of the loss. One dense mean gradient
    per update."""

    Config = NoOptions

    source = MeanGradient
    schedule = "cubic"

    def saliency(self, moment: Moment) -> Tensor:
        """Return (w g)^2."""
        return (moment.weight.double() * moment.given().double()).square()
