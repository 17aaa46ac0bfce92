"""Keep the k coordinates of largest magnitude, exactly."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.config.component import NoOptions
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier
from sparsetrain.kernels.select import select


class TopK(Sparsifier):
    """Exact top-k of |residual + gradient|; ties go to the lower index."""

    Config = NoOptions
    gathers = True

    def select(self, old: Tensor | None, buffer: Tensor, ask: Ask) -> Entries:
        """See Sparsifier: exactly k entries."""
        chosen = select(old, buffer, ask.k, scale=ask.scale, parts=ask.parts)
        return Entries(chosen.indices, chosen.values, asked=ask.k, finite=chosen.finite)
