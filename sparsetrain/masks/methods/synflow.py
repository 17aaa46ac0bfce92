"""SynFlow (Tanaka, Kunin, Yamins, Ganguli, NeurIPS 2020)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.config.numbers import Few
from sparsetrain.masks.methods.at_init import AtInit
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.probe import Probe


class SynFlow(AtInit):
    """Keeps the weights with the largest |w| dR/d|w|, their share of the flow through the network, in many small
    rounds: no layer collapses. Needs no data and nothing on the wire."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """After round k of `iterations` the density is d^(k / iterations)."""

        iterations: Few = 100

    def rounds(self, sparsity: float) -> list[float]:
        """See AtInit."""
        count = self.config.iterations
        return [1.0 - (1.0 - sparsity) ** (k / count) for k in range(1, count + 1)]

    def ask(self, probe: Probe) -> dict[str, Tensor]:
        """Return dR/d|w|."""
        return probe.flow()

    def saliency(self, moment: Moment) -> Tensor:
        """Return |w| dR/d|w|."""
        return moment.weight.double().abs() * moment.given()
