"""A layer of a model that multiplies as it always did, or by the values of its mask in the way that was chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.compute.geometry import Geometry
from sparsetrain.compute.ways.base import Way
from sparsetrain.kernels.expand import collect, expand
from sparsetrain.kernels.pattern import Pattern

MASKED = "masked"  # no way: the module's own product, with zeros


class Layer:
    """Stands in for a module's forward pass while its weight is held as values [count], as `way` wants it; with a whole
    weight the module does what it always does. `stale`: its mask is another one than that which was chosen for.

    `watching`: backward also keeps what the gradient of all weights, masked or not, is made of: inputs and gradients of
    outputs, or their product where that is smaller. `seen` is the shape of the last input.
    """

    def __init__(self, name: str, module: Any, geometry: Geometry) -> None:
        self.name, self.module, self.geometry = name, module, geometry
        self.plain = module.forward
        self.seen: tuple[int, ...] = ()
        self.watching = False
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.product: Tensor | None = None
        self.mask = torch.ones(geometry.shape, dtype=torch.bool)
        self.pattern = Pattern.of(self.mask)
        self.way: Way | None = None
        self.chosen = MASKED
        self.stale = True
        module.forward = self.forward

    def adopt(self, mask: Tensor) -> None:
        """Follow a mask, in the same way as before where that fits, until another is chosen."""
        if torch.equal(mask, self.mask):
            return
        self.mask, self.pattern = mask, Pattern.of(mask)
        try:
            self.choose(self.chosen)
        except ValueError:
            self.choose(MASKED)
        self.stale = True

    def choose(self, name: str) -> None:
        """Multiply in a way, by its name, from now on: one that is registered, or `masked`. Raises ValueError where it
        does not fit the mask."""
        self.way = None if name == MASKED else self._made(name)
        self.chosen, self.stale = name, False

    def _made(self, name: str) -> Way:
        if name not in registry.names("way"):  # it may come from a checkpoint, which must not name code
            raise ValueError(f"{self.name}: there is no way {name!r}")
        way = registry.load("way", name)
        if why := way.refuses(self.geometry, self.mask, self.pattern):
            raise ValueError(f"{self.name}: {name}: {why}")
        return way(self.geometry, self.mask, self.pattern)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module gives out."""
        self.seen = tuple(x.shape)
        weight, bias = self.module.weight, self.module.bias
        if weight.ndim > 1 or self.way is None:
            return self.plain(x)
        return _Product.apply(x, weight, bias, self, self.way)

    def watched(self, x: Tensor, dy: Tensor) -> None:
        """Keep what a pass adds to the gradient of all weights."""
        self.factors.append((x, dy))
        if sum(a.nbytes + b.nbytes for a, b in self.factors) > 4 * self.geometry.outputs * self.geometry.width:
            self.product = self.dense_gradient()
            self.factors = []

    def dense_gradient(self) -> Tensor | None:
        """Return the gradient of all weights since `forget`; None where nothing was watched."""
        total = self.product
        for x, dy in self.factors:
            part = self.geometry.weight_gradient(x, dy)
            total = part if total is None else total + part
        return total

    def forget(self) -> None:
        """Begin to watch anew."""
        self.factors, self.product = [], None

    def whole(self, values: Tensor) -> Tensor:
        """Return a tensor of the weight's shape with values [count] at the places of the mask, zeros elsewhere."""
        return expand(self.pattern, values).view(self.geometry.shape)

    def values(self, whole: Tensor) -> Tensor:
        """Return what a tensor of the weight's shape has at the places of the mask."""
        return collect(self.pattern, whole)

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
                layer.watched(x, dy)
            bias = layer.geometry.bias_gradient(dy) if wanted[2] else None
        return None if dx is None else dx.to(ctx.dtype), gradient, bias, None, None
