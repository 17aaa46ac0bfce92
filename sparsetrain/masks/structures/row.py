"""Whole neurons, filters or channels."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch

from sparsetrain.masks.layout import Layout
from sparsetrain.masks.structures.base import Structure


class Row(Structure):
    """Rows of a linear layer (neurons), filters of a convolution; or, by the input axis, columns and channels."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`axis` 0: what a layer gives out; 1: what it takes in."""

        axis: Literal[0, 1] = 0

    def layout(self, name: str, shape: tuple[int, ...]) -> Layout:
        """See Structure."""
        units = shape[self.config.axis]
        order = None
        if self.config.axis == 1:
            order = torch.arange(math.prod(shape)).view(shape).transpose(0, 1).reshape(-1)
        return Layout(shape, 1, units, math.prod(shape) // units, order)
