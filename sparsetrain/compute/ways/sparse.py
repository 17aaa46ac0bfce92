"""Products with the kept weights alone, whatever their places are."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sparsetrain.compute.geometry import Geometry
from sparsetrain.compute.ways.base import Way
from sparsetrain.kernels import versions
from sparsetrain.kernels.expand import turned
from sparsetrain.kernels.pattern import Pattern
from sparsetrain.kernels.sddmm import sddmm
from sparsetrain.kernels.spmm import spmm


class Sparse(Way):
    """The kernels `spmm` (forward, and with the transposed pattern for the input's gradient) and `sddmm`."""

    together: ClassVar[bool] = False

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern) -> str:
        """See Way."""
        if mask.device.type != "cpu":
            return f"there is no such kernel for {mask.device.type}"
        return "" if versions.native() is not None else "there are no native kernels here"

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """See Way."""
        y = spmm(self.pattern, values, self.geometry.rows(x), bias, together=self.together)
        return self.geometry.from_rows(y, x)

    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """See Way."""
        rows = self.geometry.output_rows(dy)
        dx = None
        if wanted[0]:
            other = turned(self.pattern, values)
            dx = spmm(self.pattern.turned[0], other, rows, together=self.together)
            dx = self.geometry.input_gradient(dx, x)
        if not wanted[1]:
            return dx, None
        return dx, sddmm(self.pattern, self.geometry.rows(x), rows, together=self.together)
