"""Send the whole bucket: what the dense and packed regimes do."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.config.component import NoOptions
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier, compensate


class Everything(Sparsifier):
    """All entries, in order, so that no index travels; only the rounding of values can be kept back."""

    Config = NoOptions

    shared = True

    def select(self, old: Tensor | None, buffer: Tensor, ask: Ask) -> Entries:
        """See Sparsifier: all entries."""
        compensate(old, buffer, ask.scale)
        # No code writes what is not a number: the flag in the message says it, and zeros go in its place.
        finite = bool(torch.isfinite(buffer).all())
        values = buffer.clone() if finite else torch.zeros_like(buffer)
        buffer.zero_()
        return Entries(None, values, shared=True, asked=buffer.numel(), finite=finite)
