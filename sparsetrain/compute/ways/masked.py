"""The dense product: masked weights are zeros like any other numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsetrain.compute.ways.base import Way


class Masked(Way):
    """Puts the values into a dense weight, forward and again backward, so that no layer's stays in memory."""

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """See Way."""
        return self.geometry.forward(x, self._weight(values), bias)

    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """See Way."""
        dx, gradient = self.geometry.backward(x, self._weight(values), dy, wanted)
        return dx, self._values(gradient) if gradient is not None else None

    def _weight(self, values: Tensor) -> Tensor:
        if self.pattern.density == 1.0:
            return values.view(self.geometry.shape)
        return self.pattern.dense(values).view(self.geometry.shape)

    def _values(self, gradient: Tensor) -> Tensor:
        flat = gradient.reshape(-1)
        return flat if self.pattern.density == 1.0 else flat[self.pattern.places]
