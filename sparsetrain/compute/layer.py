"""A layer of a model that multiplies by the values of its mask, in the way that was chosen for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.compute.geometry import Geometry
from sparsetrain.compute.ways.base import Way
from sparsetrain.kernels.pattern import Pattern

FALLBACK = "masked"


class Layer:
    """Stands in for a module's forward pass while its weight is held as values [count]; with a whole weight the module
    does what it always does.

    `watching`: backward also adds the gradient of all weights, masked or not, to `dense_gradient`. `seen` is the shape
    of the last input.
    """

    def __init__(self, name: str, module: Any, geometry: Geometry) -> None:
        self.name, self.module, self.geometry = name, module, geometry
        self.plain = module.forward
        self.seen: tuple[int, ...] = ()
        self.watching = False
        self.dense_gradient: Tensor | None = None
        self.mask = torch.ones(geometry.shape, dtype=torch.bool)
        self.pattern = Pattern.of(self.mask)
        self.way: Way | None = None
        self.chosen = ""
        module.forward = self.forward

    def adopt(self, mask: Tensor) -> None:
        """Follow another mask; the way has to be chosen anew."""
        self.mask, self.pattern, self.way, self.chosen = mask, Pattern.of(mask), None, ""

    def choose(self, name: str) -> None:
        """Multiply in a way, by its name, from now on. Raises ValueError where it does not fit the mask."""
        way = registry.load("way", name)
        if why := way.refuses(self.geometry, self.mask):
            raise ValueError(f"{self.name}: {name}: {why}")
        self.way, self.chosen = way(self.geometry, self.mask, self.pattern), name

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module gives out."""
        self.seen = tuple(x.shape)
        weight, bias = self.module.weight, self.module.bias
        if weight.ndim > 1:
            return self.plain(x)
        if self.way is None:
            self.choose(FALLBACK)
        return _Product.apply(x, weight, bias, self, self.way)

    def leave(self) -> None:
        """Give the module its own forward pass back."""
        del self.module.forward


def put(parameter: Tensor, data: Tensor) -> None:
    """Let a parameter hold data of another shape."""
    # Whoever keeps an old loss keeps what collects the gradient, and that knows the shape. It goes with the type.
    parameter.data = data.new_empty(0, dtype=torch.float64 if data.dtype != torch.float64 else torch.float32)
    parameter.data = data


class _Product(torch.autograd.Function):
    """The layer's product, with the two passes of its way. In fp32 also where the surroundings have other types."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer, way: Way) -> Tensor:
        ctx.layer, ctx.way, ctx.dtype = layer, way, x.dtype
        x = x.to(values.dtype)
        ctx.save_for_backward(x, values)
        with torch.autocast(x.device.type, enabled=False):
            return way.forward(x, values, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Any, ...]:
        x, values = ctx.saved_tensors
        dy = outputs[0].to(values.dtype)
        layer, wanted = ctx.layer, ctx.needs_input_grad
        with torch.autocast(x.device.type, enabled=False):
            dx, gradient = ctx.way.backward(x, values, dy, (wanted[0], wanted[1]))
            if layer.watching:
                dense = layer.geometry.weight_gradient(x, dy)
                layer.dense_gradient = dense if layer.dense_gradient is None else layer.dense_gradient.add_(dense)
            bias = layer.geometry.bias_gradient(dy) if wanted[2] else None
        return None if dx is None else dx.to(ctx.dtype), gradient, bias, None, None
