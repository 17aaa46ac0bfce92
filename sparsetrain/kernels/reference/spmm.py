"""The product with a sparse matrix as the dense product that it stands for, on any device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sparsetrain.kernels.pattern import Pattern


def spmm(pattern: Pattern, values: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return what `kernels.spmm` promises."""
    return F.linear(x, pattern.dense(values), bias)
