"""What a model can do without as a whole, because it says what belongs to it."""

from __future__ import annotations

import math

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.structures.base import Structure


class Neuron(Structure):
    """Neurons and filters with all that belongs to them: rows, biases and the next layer's columns, as the model says.

    What is left computes what a smaller dense model computes.
    """

    Config = NoOptions

    couples = "neuron"

    def layout(self, name: str, shape: tuple[int, ...]) -> Layout:
        """Return the layout of a coupling's tensor [units, weights of a unit]."""
        return Layout(shape, 1, shape[0], math.prod(shape[1:]))


class Head(Neuron):
    """Attention heads: their rows of q, k and v with biases, and their columns of the projection behind them."""

    couples = "head"
