"""Rectangles of a weight matrix."""

from __future__ import annotations

import dataclasses
import math

import torch

from sparsetrain.config.numbers import Positive
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.structures.base import Structure, refuse


class Block(Structure):
    """Blocks of `rows` x `columns` weights; of a convolution's weights the first axis is rows, all else columns."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Kernels like 32 x 32 and more; both must divide the matrix."""

        rows: Positive = 32
        columns: Positive = 32

    def layout(self, name: str, shape: tuple[int, ...]) -> Layout:
        """See Structure."""
        rows, columns = self.config.rows, self.config.columns
        height, width = shape[0], math.prod(shape[1:])
        if height % rows or width % columns:
            raise refuse(name, shape, f"is not made of whole blocks of {rows} x {columns}")
        places = torch.arange(height * width).view(height // rows, rows, width // columns, columns)
        count = (height // rows) * (width // columns)
        return Layout(shape, 1, count, rows * columns, places.permute(0, 2, 1, 3).reshape(-1))
