"""The products of a batch with a matrix of which only some square blocks are kept, and the gradient of these."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.blocks import Blocks
from sparsetrain.kernels.reference import block_product as reference


def product(blocks: Blocks, values: Tensor, x: Tensor, bias: Tensor | None = None, *, turned: bool = False) -> Tensor:
    """Return x W^T + bias [batch, rows], or with `turned` x W [batch, width]; W has `values` at the blocks' places in
    ascending flat order, zeros elsewhere. All of one type; sums are fp32 on CUDA. Versions agree to rounding. Raises
    ValueError for wrong shapes. Local."""
    _check(x, blocks.rows if turned else blocks.width, "x")
    if values.shape != (blocks.count * blocks.size**2,):
        raise ValueError(f"values are [{blocks.count * blocks.size**2}], not {list(values.shape)}")
    with torch.no_grad():
        if x.is_cuda and versions.triton():
            from sparsetrain.kernels.triton.block_product import product_cuda

            return product_cuda(blocks, values, x, bias, turned)
        return reference.product(blocks, values, x, bias, turned)


def gradient(blocks: Blocks, x: Tensor, dy: Tensor) -> Tensor:
    """Return dy^T x at the places of the blocks, in ascending flat order. See product; `dy` is [batch, rows]."""
    _check(x, blocks.width, "x")
    _check(dy, blocks.rows, "dy")
    if len(x) != len(dy):
        raise ValueError(f"x has {len(x)} samples, dy {len(dy)}")
    with torch.no_grad():
        if x.is_cuda and versions.triton():
            from sparsetrain.kernels.triton.block_product import gradient_cuda

            return gradient_cuda(blocks, x, dy)
        return reference.gradient(blocks, x, dy)


def _check(batch: Tensor, width: int, name: str) -> None:
    if batch.ndim != 2 or batch.shape[1] != width:
        raise ValueError(f"{name} is [batch, {width}], not {list(batch.shape)}")
