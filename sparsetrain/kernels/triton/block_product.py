"""Products with kept blocks on CUDA: a block is a tile or more of the matrix units, and others cost nothing."""

from __future__ import annotations

import torch
import triton  # pyrefly: ignore[missing-import]
import triton.language as tl  # pyrefly: ignore[missing-import]
from torch import Tensor

from sparsetrain.kernels.blocks import Blocks

BATCH = 64  # samples per program, and per step of a sum over them


@triton.jit
def _product(
    x, values, bias, out, first, stride, other, starts, turned, batch, width, outputs,
    TURNED: tl.constexpr, BIASED: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile [ROWS, SIZE] of x W^T + bias; TURNED: of x W. `other` is the block of x that each block meets."""
    group = tl.program_id(1)
    samples = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    edge = tl.arange(0, SIZE)
    inside = (samples < batch)[:, None]
    total = tl.zeros((ROWS, SIZE), dtype=tl.float32)
    for entry in range(tl.load(starts + group), tl.load(starts + group + 1)):
        block = tl.load(turned + entry) if TURNED else entry
        at = tl.load(other + block) * SIZE + edge
        given = tl.load(x + samples[:, None] * width + at[None, :], mask=inside, other=0.0)
        begin, step = tl.load(first + block).to(tl.int64), tl.load(stride + block)
        if TURNED:
            weight = tl.load(values + begin + edge[:, None] * step + edge[None, :])
        else:
            weight = tl.load(values + begin + edge[None, :] * step + edge[:, None])
        total = tl.dot(given, weight, total, input_precision=PRECISION)
    place = group * SIZE + edge
    if BIASED:
        total += tl.load(bias + place)[None, :].to(tl.float32)
    tl.store(out + samples[:, None] * outputs + place[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gradient(
    x, dy, out, row, column, first, stride, batch, width, outputs,
    SIZE: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of dy^T x."""
    block = tl.program_id(0)
    edge = tl.arange(0, SIZE)
    takes = tl.load(column + block) * SIZE + edge
    gives = tl.load(row + block) * SIZE + edge
    total = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    for begin in range(0, batch, ROWS):
        samples = (begin + tl.arange(0, ROWS)).to(tl.int64)
        upper = (samples < batch)[None, :]
        left = tl.load(dy + samples[None, :] * outputs + gives[:, None], mask=upper, other=0.0)
        right = tl.load(x + samples[:, None] * width + takes[None, :], mask=(samples < batch)[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    place = tl.load(first + block).to(tl.int64) + edge[:, None] * tl.load(stride + block) + edge[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty))


def product_cuda(blocks: Blocks, values: Tensor, x: Tensor, bias: Tensor | None, turned: bool = False) -> Tensor:
    """Return x W^T + bias [batch, rows], or with `turned` x W [batch, width], in x's type, summed in fp32."""
    x, values = x.contiguous(), values.contiguous()
    outputs = blocks.width if turned else blocks.rows
    out = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    if not len(x):
        return out
    starts, other = (blocks.by_column, blocks.row) if turned else (blocks.by_row, blocks.column)
    _product[triton.cdiv(len(x), BATCH), outputs // blocks.size](
        *(x, values, x if bias is None else bias, out, blocks.first, blocks.stride, other, starts, blocks.turned),
        *(len(x), x.shape[1], outputs),
        TURNED=turned, BIASED=bias is not None, SIZE=blocks.size, ROWS=BATCH, PRECISION=_precision(),
    )  # fmt: skip
    return out


def gradient_cuda(blocks: Blocks, x: Tensor, dy: Tensor) -> Tensor:
    """Return dy^T x at the places of the blocks, in ascending flat order, in x's type, summed in fp32."""
    x, dy = x.contiguous(), dy.contiguous()
    out = torch.empty(blocks.count * blocks.size**2, dtype=x.dtype, device=x.device)
    if blocks.count:
        _gradient[(blocks.count,)](
            *(x, dy, out, blocks.row, blocks.column, blocks.first, blocks.stride, len(x), x.shape[1], dy.shape[1]),
            SIZE=blocks.size, ROWS=BATCH, PRECISION=_precision(),
        )  # fmt: skip
    return out


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
