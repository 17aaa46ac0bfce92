"""Products with blocks of weights: rows that have the same inputs, or squares for the matrix units of a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsetrain.compute.geometry import Geometry
from sparsetrain.compute.ways.base import Way
from sparsetrain.compute.ways.sparse import Sparse
from sparsetrain.kernels import versions
from sparsetrain.kernels.block_product import gradient, product
from sparsetrain.kernels.blocks import SIZES, Blocks
from sparsetrain.kernels.pattern import Pattern


class Block(Way):
    """FourRows on a CPU, Squares on CUDA."""

    def __init__(self, geometry: Geometry, mask: Tensor, pattern: Pattern) -> None:
        super().__init__(geometry, mask, pattern)
        self.way = _kind(mask)(geometry, mask, pattern)
        self.only = self.way.only

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern, dtype: torch.dtype) -> str:
        """See Way."""
        return _kind(mask).refuses(geometry, mask, pattern, dtype)

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """See Way."""
        return self.way.forward(x, values, bias)

    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """See Way."""
        return self.way.backward(x, values, dy, wanted)


class FourRows(Sparse):
    """The kernels for single weights, four rows at a time: what is loaded meets four weights instead of one.

    For masks of blocks of 4 x 4 weights and multiples of them.
    """

    together = True

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern, dtype: torch.dtype) -> str:
        """See Way."""
        if not pattern.together or not pattern.turned[0].together:
            return "its mask is not made of blocks of four rows and four columns"
        return super().refuses(geometry, mask, pattern, dtype)


class Squares(Way):
    """The kernels `block_product`, in the model's own type: 16 x 16 weights and multiples of them."""

    def __init__(self, geometry: Geometry, mask: Tensor, pattern: Pattern) -> None:
        super().__init__(geometry, mask, pattern)
        blocks = Blocks.of(mask.flatten(1))
        assert blocks is not None
        self.blocks = blocks

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern, dtype: torch.dtype) -> str:
        """See Way."""
        if Blocks.of(mask.flatten(1)) is None:
            return f"its mask is not made of blocks of {SIZES[-1]} x {SIZES[-1]} weights"
        return "" if versions.triton() else "there is no Triton here"

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """See Way."""
        return self.geometry.from_rows(product(self.blocks, values, self.geometry.rows(x), bias), x)

    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """See Way."""
        rows, dx = self.geometry.output_rows(dy), None
        if wanted[0]:
            dx = self.geometry.input_gradient(product(self.blocks, values, rows, turned=True), x)
        return dx, gradient(self.blocks, self.geometry.rows(x), rows) if wanted[1] else None


def _kind(mask: Tensor) -> type[Way]:
    return Squares if mask.is_cuda else FourRows
