"""Discovering neural wirings (Wortsman, Farhadi, Rastegari, NeurIPS 2019), for the weights of a fixed network."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.methods.base import Moment
from sparsetrain.masks.methods.straight_through import StraightThrough


class DNW(StraightThrough):
    """The forward pass uses the largest |w|, chosen anew at every update (masks.every: 1 is the paper's); all weights
    get the straight-through gradient, so what is left out may grow back in. Needs nothing on the wire for its masks;
    gradients travel dense."""

    Config = NoOptions

    starts_dense = False
    needs_masked_gradients = True

    def initial(self, moment: Moment) -> Tensor:
        """Return the largest |w|."""
        return self.update(moment)
