"""Movement pruning (Sanh, Wolf, Rush, NeurIPS 2020)."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.straight_through import StraightThrough
from sparsetrain.masks.sources import Accumulated


class Movement(StraightThrough):
    """Keeps the weights that training moves away from zero: scores S = - sum of w x g over all steps, the forward pass
    uses the top S, the backward pass is straight-through. Scores cross ranks once per update, gradients travel dense.

    The paper's S also carries a learning rate; it is the same for all weights and does not change their order.
    """

    Config = NoOptions

    source = Accumulated
    schedule = "cubic"

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return - w g, in fp32."""
        return -(weight.float() * gradient.float())

    def saliency(self, moment: Moment) -> Tensor:
        """Return the scores S."""
        return moment.given()
