"""A layer of a model that multiplies as it always did, or by the values of its mask in the way that was chosen."""

from __future__ import annotations

from collections.abc import Callable
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
    outputs, or their product where that is smaller. `seen` is the shape of the last input, `dtype` the type
    that the model computes in.
    """

    def __init__(self, name: str, module: Any, geometry: Geometry) -> None:
        self.name, self.module, self.geometry = name, module, geometry
        self.plain = module.forward
        self.seen: tuple[int, ...] = ()
        self.dtype = torch.float32
        self.watching = False
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.product: Tensor | None = None
        self.mask = torch.ones(geometry.shape, dtype=torch.bool)
        self.pattern = Pattern.of(self.mask)
        self.way: Way | None = None
        self.chosen = MASKED
        self.stale = True
        self.narrow: Callable[[], bool] = lambda: False  # see compute/pairs.py
        module.forward = self.forward

    def adopt(self, mask: Tensor) -> None:
        """Follow a mask, in the same way as before where that fits, until another is chosen."""
        if torch.equal(mask, self.mask):
            return
        self.mask, self.pattern = mask, Pattern.of(mask)
        self.choose(self.chosen)
        self.stale = True

    def choose(self, name: str) -> None:
        """Multiply in a registered way, by its name, from now on; as `masked` where it does not fit the mask or this
        process, which may be without a compiler where another has one. Raises ValueError for an unknown name."""
        if name not in (MASKED, *registry.names("way")):  # it may come from a checkpoint, which must not name code
            raise ValueError(f"{self.name}: there is no way {name!r}")
        self.way, self.chosen, self.stale = None, MASKED, False
        if name != MASKED:
            way = registry.load("way", name)
            if not way.refuses(self.geometry, self.mask, self.pattern, self.dtype):
                self.way, self.chosen = way(self.geometry, self.mask, self.pattern), name

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module gives out."""
        self.seen = self.geometry.whole_input(tuple(x.shape))
        kind = x.device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        weight, bias = self.module.weight, self.module.bias
        if weight.ndim > 1 or self.way is None:
            return self.plain(x)
        self.way.narrow = self.narrow()
        return _Product.apply(x, weight, bias, self, self.way)

    def watched(self, x: Tensor, dy: Tensor) -> None:
        """Keep what a pass adds to the gradient of all weights."""
        self.factors.append((x, dy))
        if sum(a.nbytes + b.nbytes for a, b in self.factors) > 4 * self.geometry.outputs * self.geometry.width:
            self.product = self.dense_gradient()
            self.factors = []

    def dense_gradient(self) -> Tensor | None:
        """Return the gradient of all weights since `forget`, fp32; None where nothing was watched."""
        total = self.product
        for x, dy in self.factors:
            part = self.geometry.weight_gradient(x, dy).float()
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
    """The layer's product, with the two passes of its way, in the type that this computes in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer, way: Way) -> Tensor:
        ctx.layer, ctx.way, ctx.given, ctx.dtype = layer, way, x.dtype, way.computes_in(layer.dtype)
        x = x.to(ctx.dtype)
        ctx.save_for_backward(x, values)
        with torch.autocast(x.device.type, enabled=False):
            return way.forward(x, values.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype))

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Any, ...]:
        x, values = ctx.saved_tensors
        dy = outputs[0].to(ctx.dtype)
        layer, wanted = ctx.layer, ctx.needs_input_grad
        with torch.autocast(x.device.type, enabled=False):
            dx, gradient = ctx.way.backward(x, values.to(ctx.dtype), dy, (wanted[0], wanted[1]))
            if layer.watching:
                layer.watched(x, dy)
            bias = ctx.way.bias_gradient(dy) if wanted[2] else None
        gradient, bias = (None if each is None else each.to(values.dtype) for each in (gradient, bias))
        return None if dx is None else dx.to(ctx.given), gradient, bias, None, None
