"""Convolutions of which only some weights are kept, step 1, without a matrix of patches."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.reference import conv as reference
from sparsetrain.kernels.shifts import Shifts


def conv(shifts: Shifts, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the convolution, fp32 [images, rows, height, width], of `x` with weights that have `values` [count] in
    ascending flat order. Versions agree to rounding. Raises ValueError for wrong dtypes or shapes. Local."""
    _check(x, shifts.sizes[:3], "x")
    if values.dtype != torch.float32 or values.shape != shifts.offsets.shape:
        raise ValueError(f"values are fp32 [{len(shifts.offsets)}], not {values.dtype} {list(values.shape)}")
    with torch.no_grad():
        own = values.detach() if shifts.order is None else values.detach()[shifts.order.long()]
        native = versions.native() if x.device.type == "cpu" else None
        if native is None:
            return reference.conv(shifts, own, x, bias)
        bias = None if bias is None else bias.detach().contiguous()
        return native.conv(shifts, own.contiguous(), x.detach().contiguous(), bias)


def conv_gradient(shifts: Shifts, x: Tensor, dy: Tensor) -> Tensor:
    """Return the gradient of the kept weights, fp32 [count], from the images `x` and the gradient of what came of them.
    The number of threads changes no bit. See conv."""
    _check(x, shifts.sizes[:3], "x")
    _check(dy, (shifts.rows, *shifts.sizes[5:]), "dy")
    if len(x) != len(dy):
        raise ValueError(f"x has {len(x)} images, dy {len(dy)}")
    with torch.no_grad():
        native = versions.native() if x.device.type == "cpu" else None
        if native is None:
            return reference.conv_gradient(shifts, x, dy)
        return native.conv_gradient(shifts, x.detach().contiguous(), dy.detach().contiguous())


def _check(images: Tensor, shape: tuple[int, ...], name: str) -> None:
    if images.dtype != torch.float32 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"{name} is fp32 [images, {', '.join(map(str, shape))}], not {images.dtype} {list(images.shape)}"
        )
