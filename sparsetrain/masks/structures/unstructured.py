"""Single weights."""

from __future__ import annotations

import math

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.structures.base import Structure


class Unstructured(Structure):
    """Every weight by itself: the most accurate at a given sparsity, and the hardest to make fast."""

    Config = NoOptions

    def layout(self, name: str, shape: tuple[int, ...]) -> Layout:
        """See Structure."""
        return Layout(shape, 1, math.prod(shape), 1)
