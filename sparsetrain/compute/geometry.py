"""What a layer does with its weights, as products of matrices: linear layers and convolutions."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Geometry(abc.ABC):
    """How an input meets a weight of `shape`. `rows` turns an input into the batch that a matrix [outputs, width]
    multiplies, one row a sample (or a pixel of one)."""

    shape: tuple[int, ...]

    @abc.abstractmethod
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer gives out, with a whole weight."""

    @abc.abstractmethod
    def backward(self, x: Tensor, weight: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Return the gradients of input and weight, those that are wanted."""

    @abc.abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """Return the input as [rows, width]."""

    @abc.abstractmethod
    def from_rows(self, y: Tensor, x: Tensor) -> Tensor:
        """Return what the layer gives out for `x` from its rows [rows, outputs]."""

    @abc.abstractmethod
    def output_rows(self, dy: Tensor) -> Tensor:
        """Return an output's gradient as [rows, outputs]."""

    @abc.abstractmethod
    def input_gradient(self, dx: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of `x` from that of its rows."""

    @property
    def axis(self) -> int:
        """Return the axis of inputs and outputs in what goes in and comes out."""
        return -1 if len(self.shape) == 2 else 1

    def whole_input(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of an input with all of its features or channels."""
        sizes = list(shape)
        sizes[self.axis] = self.shape[1]
        return tuple(sizes)

    @property
    def outputs(self) -> int:
        """Return how many outputs there are."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Return how many weights an output has."""
        return math.prod(self.shape[1:])

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return the gradient of all weights, masked or not."""
        return (self.output_rows(dy).t() @ self.rows(x)).view(self.shape)

    def bias_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of the bias."""
        return self.output_rows(dy).sum(0)


@dataclasses.dataclass(frozen=True)
class LinearGeometry(Geometry):
    """y = x W^T + b over the last axis."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See Geometry; so for all that follow."""
        return F.linear(x, weight, bias)

    def backward(self, x: Tensor, weight: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        gradient = self.output_rows(dy).t() @ self.rows(x) if wanted[1] else None
        return dy @ weight if wanted[0] else None, gradient

    def rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])

    def from_rows(self, y: Tensor, x: Tensor) -> Tensor:
        return y.view(*x.shape[:-1], y.shape[-1])

    def output_rows(self, dy: Tensor) -> Tensor:
        return dy.reshape(-1, dy.shape[-1])

    def input_gradient(self, dx: Tensor, x: Tensor) -> Tensor:
        return dx.view(x.shape)


@dataclasses.dataclass(frozen=True)
class ConvGeometry(Geometry):
    """A two-dimensional convolution without groups, padded with zeros."""

    stride: Pair
    padding: Pair
    dilation: Pair

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See Geometry; so for all that follow."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def backward(self, x: Tensor, weight: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        steps = (self.stride, self.padding, self.dilation)
        found = torch.ops.aten.convolution_backward(dy, x, weight, None, *steps, False, [0, 0], 1, [*wanted, False])
        return found[0], found[1]

    def rows(self, x: Tensor) -> Tensor:
        if self._pointwise:
            return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        patches = F.unfold(x, self.shape[2:], self.dilation, self.padding, self.stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])

    def from_rows(self, y: Tensor, x: Tensor) -> Tensor:
        height, width = (self._size(x, axis) for axis in (0, 1))
        return y.view(len(x), height, width, -1).permute(0, 3, 1, 2)

    def output_rows(self, dy: Tensor) -> Tensor:
        return dy.permute(0, 2, 3, 1).reshape(-1, dy.shape[1])

    def input_gradient(self, dx: Tensor, x: Tensor) -> Tensor:
        if self._pointwise:
            return dx.view(len(x), x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)
        patches = dx.view(len(x), -1, dx.shape[1]).transpose(1, 2)
        size = (x.shape[2], x.shape[3])
        return F.fold(patches, size, self.shape[2:], self.dilation, self.padding, self.stride)

    @property
    def _pointwise(self) -> bool:
        return self.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def _size(self, x: Tensor, axis: int) -> int:
        reach = self.dilation[axis] * (self.shape[2 + axis] - 1) + 1
        return (x.shape[2 + axis] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


def geometry_of(module: nn.Module) -> Geometry | None:
    """Return what a module does with its weight; None where it is none of the layers that are known here."""
    if type(module) is nn.Linear:
        return LinearGeometry(tuple(module.weight.shape))
    if type(module) is not nn.Conv2d or module.groups != 1 or module.padding_mode != "zeros":
        return None
    if isinstance(module.padding, str):
        return None
    stride, padding, dilation = module.stride, module.padding, module.dilation
    steps = ((int(a), int(b)) for a, b in (stride, padding, dilation))
    return ConvGeometry(tuple(module.weight.shape), *steps)
