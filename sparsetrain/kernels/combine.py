"""Two sparse lists to one: what a rank does that passes sums on while they are still sparse."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.reference import combine as reference


def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return (indices int32 ascending, values fp32) of all places in `left` or `right`, summed where both have one.

    Each is (indices int32 [k], values fp32 [k]), indices ascending and unique: whoever received them has checked that.
    The order of the two changes no bit. Raises ValueError for wrong dtypes or shapes. Local: no rank waits for another.
    """
    device = left[0].device
    for indices, values in (left, right):
        if indices.dtype != torch.int32 or values.dtype != torch.float32 or indices.dim() != 1:
            raise ValueError(f"a list is int32 and fp32, 1-D, not {indices.dtype} and {values.dtype}")
        if indices.shape != values.shape or not indices.device == values.device == device:
            raise ValueError(f"{tuple(indices.shape)} indices on {indices.device} for {tuple(values.shape)} values")
    with torch.no_grad():
        native = versions.native() if device.type == "cpu" else None
        if native is None:
            return reference.combine(left, right)
        one, other = (
            (indices.detach().contiguous(), values.detach().contiguous()) for indices, values in (left, right)
        )
        return native.combine(one, other)
