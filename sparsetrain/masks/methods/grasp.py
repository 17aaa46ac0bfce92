"""GraSP (Wang, Zhang, Grosse, ICLR 2020)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.config.numbers import Few
from sparsetrain.masks.methods.at_init import AtInit
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.probe import Probe


class GraSP(AtInit):
    """Keeps the weights with the largest w x (H g) at the start, to keep the gradient flowing. Two dense means, once.

    The loss is the model's own; the authors' code divides the logits by 200 first.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`batches` of each worker give the gradient and the Hessian."""

        batches: Few = 1

    def ask(self, probe: Probe) -> dict[str, Tensor]:
        """Return H g. Collective."""
        return probe.hessian_gradient(self.config.batches)

    def saliency(self, moment: Moment) -> Tensor:
        """Return w (H g), with its sign."""
        return moment.weight.double() * moment.given().double()
