"""A dense product of a smaller matrix, where a mask leaves whole outputs and inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsetrain.compute.geometry import Geometry
from sparsetrain.compute.ways.base import Way
from sparsetrain.kernels.pattern import Pattern


class Smaller(Way):
    """Some outputs and some inputs with all weights between them: what is left is a dense layer.

    Outputs that are out give their bias; inputs that are out are not looked at. When it is `narrow` they are not there
    at all, nor in what comes back; what comes in may lack them, too.
    """

    def __init__(self, geometry: Geometry, mask: Tensor, pattern: Pattern) -> None:
        super().__init__(geometry, mask, pattern)
        self.gives, self.takes = _sides(mask)
        self.outputs, self.inputs = (torch.nonzero(side).flatten() for side in (self.gives, self.takes))
        self.shape = (len(self.outputs), len(self.inputs), *geometry.shape[2:])
        self.axis = geometry.axis

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern, dtype: torch.dtype) -> str:
        """See Way."""
        outputs, inputs = (int(side.sum()) for side in _sides(mask))
        each = mask[0, 0].numel() if mask.numel() else 1
        if outputs * inputs * each != int(mask.sum()):
            return "its mask does not leave whole outputs and inputs"
        return "" if outputs and inputs else "its mask leaves nothing"

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """See Way."""
        some = None if bias is None else bias[self.outputs]
        part = self.geometry.forward(self._in(x), values.view(self.shape), some)
        if len(self.outputs) == self.geometry.outputs or self.narrow:
            return part
        size = list(part.shape)
        size[self.axis] = self.geometry.outputs
        whole = part.new_zeros(size)
        if bias is not None:
            whole += bias if self.axis == -1 else bias[:, None, None]
        return whole.index_copy_(part.ndim - 1 if self.axis == -1 else 1, self.outputs, part)

    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """See Way."""
        part = dy if dy.shape[self.axis] == len(self.outputs) else dy.index_select(self.axis, self.outputs)
        dx, gradient = self.geometry.backward(self._in(x), values.view(self.shape), part, wanted)
        if dx is not None and len(self.inputs) < x.shape[self.axis]:
            dx = torch.zeros_like(x, dtype=dx.dtype).index_copy_(x.ndim - 1 if self.axis == -1 else 1, self.inputs, dx)
        return dx, gradient.reshape(-1) if gradient is not None else None

    def bias_gradient(self, dy: Tensor) -> Tensor:
        """See Way."""
        part = self.geometry.bias_gradient(dy)
        if len(part) == self.geometry.outputs:
            return part
        return part.new_zeros(self.geometry.outputs).index_copy_(0, self.outputs, part)

    def _in(self, x: Tensor) -> Tensor:
        return x if len(self.inputs) == x.shape[self.axis] else x.index_select(self.axis, self.inputs)


def _sides(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return which outputs and inputs have a weight, bool."""
    pairs = mask.flatten(2).any(2) if mask.ndim > 2 else mask
    return pairs.any(1), pairs.any(0)
