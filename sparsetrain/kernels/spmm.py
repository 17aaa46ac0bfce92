"""The product of a batch with a matrix of which only some places are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.pattern import Pattern
from sparsetrain.kernels.reference import spmm as reference


def spmm(pattern: Pattern, values: Tensor, x: Tensor, bias: Tensor | None = None, *, together: bool = False) -> Tensor:
    """Return x W^T + bias, fp32 [batch, rows]; W has `values` [count] at the places of `pattern`, zeros elsewhere.

    `x` is [batch, width]. `together`: four rows at a time, where `pattern.together`. Versions agree to rounding. With
    W's transpose (`pattern.turned`) it is a layer's input gradient. Raises ValueError for wrong dtypes or shapes.
    Local: no rank waits for another.
    """
    check(pattern, x, pattern.width, "x")
    if values.dtype != torch.float32 or values.shape != (pattern.count,):
        raise ValueError(f"values are fp32 [{pattern.count}], not {values.dtype} {list(values.shape)}")
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != (pattern.rows,)):
        raise ValueError(f"a bias is fp32 [{pattern.rows}], not {bias.dtype} {list(bias.shape)}")
    check_together(pattern, together)
    with torch.no_grad():
        native = versions.native() if x.device.type == "cpu" else None
        if native is None:
            return reference.spmm(pattern, values, x, bias)
        bias = None if bias is None else bias.detach().contiguous()
        return native.spmm(pattern, values.detach().contiguous(), x.detach().contiguous(), bias, together)


def check(pattern: Pattern, batch: Tensor, width: int, name: str) -> None:
    """Raise ValueError where a batch is not fp32 [any, width] beside the pattern."""
    if batch.dtype != torch.float32 or batch.ndim != 2 or batch.shape[1] != width:
        raise ValueError(f"{name} is fp32 [batch, {width}], not {batch.dtype} {list(batch.shape)}")
    if batch.device != pattern.columns.device:
        raise ValueError(f"{name} is on {batch.device}, the pattern on {pattern.columns.device}")


def check_together(pattern: Pattern, together: bool) -> None:
    """Raise ValueError where rows are to be worked on together that have different columns."""
    if together and not pattern.together:
        raise ValueError("the pattern's rows do not come in fours with the same columns")
