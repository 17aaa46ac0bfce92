"""Sparse lists to one dense tensor: the other half of every sparse exchange.

Because each list is ascending, the sum is a streaming merge: a window of the output is zeroed and filled while it is
in cache, and costs about as much as zeroing the output alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.reference.merge import merge_cpu, merge_device


def merge(sources: Sequence[tuple[Tensor, Tensor]], out: Tensor, scale: float) -> Tensor:
    """Make `out` the sum over `sources`, in their order, of value * scale at index, and return it.

    A source is (indices int32 [k], values fp32 [k]), its indices ascending, unique and in range: whoever received
    them has checked that. `out` is fp32, 1-D, contiguous, of any content. Each place is a chain of one multiply and
    one add per source, each rounded, from zero, so that all ranks hold the same bits. Raises ValueError for wrong
    dtypes or shapes. Local: no rank waits for another.
    """
    if out.dtype != torch.float32 or out.dim() != 1 or not out.is_contiguous():
        raise ValueError(f"out must be fp32, 1-D and contiguous, not {out.dtype} {tuple(out.shape)}")
    checked = [_check(indices, values, out) for indices, values in sources]
    with torch.no_grad():
        if out.device.type == "cuda" and versions.triton():
            from sparsetrain.kernels.triton.merge import merge_cuda  # an optional package

            return merge_cuda(checked, out, scale)
        if out.device.type != "cpu":
            return merge_device(checked, out, scale)
        native = versions.native()
        return merge_cpu(checked, out, scale) if native is None else native.merge(checked, out, scale)


def _check(indices: Tensor, values: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    if indices.dtype != torch.int32 or values.dtype != torch.float32 or indices.dim() != 1:
        raise ValueError(f"a source is int32 and fp32, 1-D, not {indices.dtype} and {values.dtype}")
    if indices.shape != values.shape or not indices.device == values.device == out.device:
        raise ValueError(f"{tuple(indices.shape)} indices on {indices.device} for {tuple(values.shape)} values")
    return indices.detach().contiguous(), values.detach().contiguous()
