"""SNIP (Lee, Ajanthan, Torr, ICLR 2019)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.config.numbers import Few
from sparsetrain.masks.methods.at_init import AtInit
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.probe import Probe


class SNIP(AtInit):
    """Keeps the weights with the largest |w x mean gradient| at the start. One dense mean gradient, once."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`batches` of each worker are averaged before the product is taken."""

        batches: Few = 1

    def ask(self, probe: Probe) -> dict[str, Tensor]:
        """Return the mean gradient. Collective."""
        return probe.gradient(self.config.batches)

    def saliency(self, moment: Moment) -> Tensor:
        """Return |w g|; the paper also divides by its sum, which changes no order."""
        return (moment.weight.double() * moment.given().double()).abs()
