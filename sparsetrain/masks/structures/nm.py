"""N of every M neighbours."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch

from sparsetrain.config.numbers import Positive
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.structures.base import Structure, refuse


class NM(Structure):
    """N of every M weights along an axis are kept (2:4 is what NVIDIA's sparse tensor cores multiply).

    `axis` 1, the default, is the input axis, along which the forward product sums; the backward product sums along
    axis 0, so a mask of one axis does not serve the other.
    """

    balanced = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`m` must divide the axis; the final sparsity is 1 - n / m."""

        n: Positive = 2
        m: Positive = 4
        axis: Literal[0, 1] = 1

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
        if shape[axis] % m:
            raise refuse(name, shape, f"has {shape[axis]} weights along axis {axis}, not a multiple of {m}")
        size = math.prod(shape)
        order = torch.arange(size).view(shape).movedim(axis, -1).reshape(-1)
        return Layout(shape, size // m, m, 1, None if axis == len(shape) - 1 else order)
