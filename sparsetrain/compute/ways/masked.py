"""The dense product: masked weights are zeros like any other numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsetrain.compute.ways.base import Way
from sparsetrain.kernels.expand import collect, expand


class Masked(Way):
    """Puts the values into a dense weight, forward and again backward, so that no layer's stays in memory."""

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """See Way."""
        return self.geometry.forward(x, self._weight(values), bias)

    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """See Way."""
        dx, gradient = self.geometry.backward(x, self._weight(values), dy, wanted)
        return dx, collect(self.pattern, gradient) if gradient is not None else None

    def _weight(self, values: Tensor) -> Tensor:
        return expand(self.pattern, values).view(self.geometry.shape)
