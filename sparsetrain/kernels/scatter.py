"""Adding a sparse list to a dense tensor that keeps its content: what did not arrive goes back into a residual.

The places are ascending but far apart, so that nearly all time is waiting for memory; compiled code asks for the
lines ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import index_code, versions
from sparsetrain.kernels.reference.scatter import scatter_add as reference


def scatter_add(out: Tensor, indices: Tensor, values: Tensor, scale: float = 1.0) -> Tensor:
    """Add value * scale to `out` at index, each operation rounded, and return `out`.

    `indices` int32 [k], ascending, unique and in range; `values` fp32 [k]; `out` fp32, 1-D, contiguous. Raises
    ValueError for other dtypes, shapes or devices, and on processors for other indices, before anything is changed;
    on other devices nobody waits for such a check. Local: no rank waits for another.
    """
    if out.dtype != torch.float32 or out.dim() != 1 or not out.is_contiguous():
        raise ValueError(f"out must be fp32, 1-D and contiguous, not {out.dtype} {tuple(out.shape)}")
    if indices.dtype != torch.int32 or values.dtype != torch.float32 or indices.dim() != 1:
        raise ValueError(f"entries are int32 and fp32, 1-D, not {indices.dtype} and {values.dtype}")
    if indices.shape != values.shape or not indices.device == values.device == out.device:
        raise ValueError(f"{tuple(indices.shape)} indices on {indices.device} for {tuple(values.shape)} values")
    with torch.no_grad():
        if out.device.type != "cpu":
            return reference(out, indices, values, scale)
        places, terms = indices.contiguous(), values.contiguous()
        if not index_code.check_ascending(places, out.numel()):
            raise ValueError(f"indices must be ascending in 0..{out.numel() - 1}")
        native = versions.native()
        return (native.scatter_add if native else reference)(out, places, terms, scale)
