"""N of every M neighbours."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch

from sparsetrain.config.numbers import Positive
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.structures.base import Structure, refuse
from sparsetrain.masks.tiles import Tiles


class NM(Structure):
    """N of every M weights along an axis are kept (2:4 is what NVIDIA's sparse tensor cores multiply).

    `axis` 1, the default, is the input axis, along which the forward product sums; the backward product sums along
    axis 0, so a mask of one axis does not serve the other. A transposable mask serves both: every tile of M x M keeps N
    in each row and each column.
    """

    balanced = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`m` must divide the axis; the final sparsity is 1 - n / m. With `transposable` both axes count, and `m` must
        divide both."""

        n: Positive = 2
        m: Positive = 4
        axis: Literal[0, 1] = 1
        transposable: bool = False

        def __post_init__(self) -> None:
            if self.n > self.m:
                raise ValueError(f"n {self.n} is more than m {self.m}")

    @property
    def density(self) -> float | None:
        """Return n / m."""
        return self.config.n / self.config.m

    def layout(self, name: str, shape: tuple[int, ...]) -> Layout:
        """See Structure."""
        axis, m = self.config.axis, self.config.m
        if self.config.transposable:
            return self._tiles(name, shape)
        if shape[axis] % m:
            raise refuse(name, shape, f"has {shape[axis]} weights along axis {axis}, not a multiple of {m}")
        size = math.prod(shape)
        order = torch.arange(size).view(shape).movedim(axis, -1).reshape(-1)
        return Layout(shape, size // m, m, 1, None if axis == len(shape) - 1 else order)

    def _tiles(self, name: str, shape: tuple[int, ...]) -> Layout:
        """Return the layout of m x m tiles of outputs and inputs; of a convolution's weights, at each pixel."""
        m, size = self.config.m, math.prod(shape)
        if shape[0] % m or shape[1] % m:
            raise refuse(name, shape, f"is not made of whole tiles of {m} x {m} along its first two axes")
        places = torch.arange(size).view(shape[0] // m, m, shape[1] // m, m, -1)
        return Tiles(shape, size // m**2, m**2, 1, places.permute(0, 2, 4, 1, 3).reshape(-1))
