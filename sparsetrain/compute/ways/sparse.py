"""Products with the kept weights alone, whatever their places are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsetrain.compute.geometry import ConvGeometry, Geometry
from sparsetrain.compute.ways.base import Way
from sparsetrain.kernels import versions
from sparsetrain.kernels.conv import conv, conv_gradient
from sparsetrain.kernels.expand import turned
from sparsetrain.kernels.pattern import Pattern
from sparsetrain.kernels.sddmm import sddmm
from sparsetrain.kernels.shifts import Shifts, shifts
from sparsetrain.kernels.spmm import spmm


class Sparse(Way):
    """The kernels `spmm` (forward, and with the transposed pattern for the input's gradient) and `sddmm`; for
    convolutions of step 1 `conv` and `conv_gradient`, for others those of a matrix of patches."""

    only = torch.float32
    together: ClassVar[bool] = False

    def __init__(self, geometry: Geometry, mask: Tensor, pattern: Pattern) -> None:
        super().__init__(geometry, mask, pattern)
        self.shifts: dict[tuple[int, ...], tuple[Shifts, Shifts] | None] = {}  # by the shape of an image

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern, dtype: torch.dtype) -> str:
        """See Way."""
        if mask.device.type != "cpu":
            return f"there is no such kernel for {mask.device.type}"
        return "" if versions.native() is not None else "there are no native kernels here"

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """See Way."""
        if (found := self._shifts(x)) is not None:
            return conv(found[0], values, x, bias)
        y = spmm(self.pattern, values, self.geometry.rows(x), bias, together=self.together)
        return self.geometry.from_rows(y, x)

    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """See Way."""
        if (found := self._shifts(x)) is not None:
            dx = conv(found[1], values, dy) if wanted[0] else None
            return dx, conv_gradient(found[0], x, dy) if wanted[1] else None
        rows = self.geometry.output_rows(dy)
        dx = None
        if wanted[0]:
            other = turned(self.pattern, values)
            dx = spmm(self.pattern.turned[0], other, rows, together=self.together)
            dx = self.geometry.input_gradient(dx, x)
        if not wanted[1]:
            return dx, None
        return dx, sddmm(self.pattern, self.geometry.rows(x), rows, together=self.together)

    def _shifts(self, x: Tensor) -> tuple[Shifts, Shifts] | None:
        """Return where weights meet an image, there and back; None for what is no convolution of step 1."""
        at = self.geometry
        if self.together or not isinstance(at, ConvGeometry) or at.stride != (1, 1):
            return None
        size = tuple(x.shape[1:])
        if size not in self.shifts:
            self.shifts = {size: shifts(self.pattern, at.shape, size, at.padding, at.dilation)}
        return self.shifts[size]
