"""The gradient of a matrix of which only some places are kept, at those places."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.pattern import Pattern
from sparsetrain.kernels.reference import sddmm as reference
from sparsetrain.kernels.spmm import check, check_together


def sddmm(pattern: Pattern, x: Tensor, dy: Tensor, *, together: bool = False) -> Tensor:
    """Return dy^T x at the places of `pattern`, fp32 [count]: a sampled dense-dense product.

    `x` is what a layer took in [batch, width], `dy` the gradient of what it gave out [batch, rows]; `together` as in
    spmm. Versions agree to rounding; the number of threads changes no bit. Raises ValueError for wrong dtypes or
    shapes. Local.
    """
    check(pattern, x, pattern.width, "x")
    check(pattern, dy, pattern.rows, "dy")
    if len(x) != len(dy):
        raise ValueError(f"x has {len(x)} samples, dy {len(dy)}")
    check_together(pattern, together)
    with torch.no_grad():
        native = versions.native() if x.device.type == "cpu" else None
        if native is None:
            return reference.sddmm(pattern, x, dy)
        return native.sddmm(pattern, x.detach().contiguous(), dy.detach().contiguous(), together)
