"""Keep what reaches a threshold that is estimated anew from a sample at every exchange."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.config.numbers import Above0, Fraction
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier
from sparsetrain.kernels.select import select


class Threshold(Sparsifier):
    """About k entries: a sampled threshold, without trimming. Cheapest pass; messages differ in length.

    A count outside least..most of k is trimmed or filled to exactly k. Thresholds are never carried over from the
    last step: error feedback piles values up right below them.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Shares of k between which the realised count may lie."""

        least: Fraction = 0.8
        most: Above0 = 1.25

        def __post_init__(self) -> None:
            if not self.least <= 1.0 <= self.most:
                raise ValueError("least must be at most 1 and most at least 1")

    gathers = True

    def select(self, old: Tensor | None, buffer: Tensor, ask: Ask) -> Entries:
        """See Sparsifier: between least x k and most x k entries."""
        least = max(1, -int(-self.config.least * ask.k // 1))
        most = min(buffer.numel(), int(self.config.most * ask.k))
        chosen = select(old, buffer, ask.k, scale=ask.scale, parts=ask.parts, least=least, most=max(most, ask.k))
        return Entries(chosen.indices, chosen.values, even=False, asked=ask.k, finite=chosen.finite)
