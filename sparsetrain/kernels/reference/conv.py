"""Convolutions with kept weights in plain torch: each weight times the image, shifted by its place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsetrain.kernels.shifts import Shifts


def conv(shifts: Shifts, values: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return what `kernels.conv` promises; `values` in the order of the shifts."""
    taken = _taken(shifts, x)
    row = torch.repeat_interleave(torch.arange(shifts.rows), shifts.starts.diff().long())
    y = x.new_zeros(len(x), shifts.rows, *taken.shape[2:])
    y.index_add_(1, row, taken * values[:, None, None])
    return y if bias is None else y + bias[:, None, None]


def conv_gradient(shifts: Shifts, x: Tensor, dy: Tensor) -> Tensor:
    """Return what `kernels.conv_gradient` promises."""
    row = torch.repeat_interleave(torch.arange(shifts.rows), shifts.starts.diff().long())
    return (_taken(shifts, x) * dy[:, row]).sum((0, 2, 3))


def _taken(shifts: Shifts, x: Tensor) -> Tensor:
    """Return what each weight meets, [images, count, height, width]."""
    rows, columns, height, width = shifts.sizes[3:]
    flat = F.pad(x, (columns, columns, rows, rows)).flatten(1)
    pixels = torch.arange(height)[:, None] * shifts.line + torch.arange(width)
    return flat[:, shifts.offsets.long()[:, None, None] + pixels]
