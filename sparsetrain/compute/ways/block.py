"""Products with blocks of weights: rows that come in fours with the same inputs."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.compute.geometry import Geometry
from sparsetrain.compute.ways.sparse import Sparse
from sparsetrain.kernels.pattern import Pattern


class Block(Sparse):
    """The kernels for single weights, four rows at a time: what is loaded meets four weights instead of one.

    For masks of blocks of 4 x 4 weights and multiples of them.
    """

    together = True

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern) -> str:
        """See Way."""
        if not pattern.together or not pattern.turned[0].together:
            return "its mask is not made of blocks of four rows and four columns"
        return super().refuses(geometry, mask, pattern)
