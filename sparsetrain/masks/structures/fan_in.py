"""The same number of inputs for every neuron."""

from __future__ import annotations

import math

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.structures.base import Structure


class FanIn(Structure):
    """Constant fan-in: every row (neuron, filter) keeps equally many weights, so a row is a short index list."""

    Config = NoOptions

    balanced = True

    def layout(self, name: str, shape: tuple[int, ...]) -> Layout:
        """See Structure."""
        return Layout(shape, shape[0], math.prod(shape[1:]), 1)
