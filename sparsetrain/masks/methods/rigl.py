"""RigL: rigging the lottery (Evci et al., ICML 2020)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor

from sparsetrain.config.numbers import Density, Fraction
from sparsetrain.masks.candidates import Candidates
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.regrower import Regrower
from sparsetrain.masks.sources import MeanGradient


class RigL(Regrower):
    """Drops the smallest |w|, grows where |mean gradient| is largest. One dense mean gradient per update, or the means
    of candidates."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` is the paper's alpha; it falls as a cosine. `growth` from the dense mean gradient is the
        paper's rule; from candidates it costs `share` of the bytes."""

        drop_fraction: Fraction = 0.3
        growth: Literal["dense", "candidates"] = "dense"
        share: Density = 0.045

    needs_masked_gradients = True
    grows_largest = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.source = Candidates if config.growth == "candidates" else MeanGradient

    def growth(self, moment: Moment) -> Tensor:
        """Return |mean gradient|."""
        return moment.given().abs()
