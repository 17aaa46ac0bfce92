"""Single weights to and from the dense matrix that they stand for, and to the order of its transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.native.library import Library
from sparsetrain.kernels.pattern import Pattern


def expand(pattern: Pattern, values: Tensor) -> Tensor:
    """Return the matrix [rows, width] with `values` [count] at the places of `pattern`, zeros elsewhere; a view of them
    where all places are kept. Local."""
    if pattern.density == 1.0:
        return values.detach().view(pattern.rows, pattern.width)
    with torch.no_grad():
        native = _native(values)
        return pattern.dense(values) if native is None else native.expand(pattern, values.detach().contiguous())


def collect(pattern: Pattern, dense: Tensor) -> Tensor:
    """Return what a matrix [rows, width] (of any shape with as many elements) has at the places of `pattern`; a view
    where all are kept. Local."""
    if dense.numel() != pattern.rows * pattern.width:
        raise ValueError(f"{list(dense.shape)} is not {pattern.rows} x {pattern.width}")
    if pattern.density == 1.0:
        return dense.detach().reshape(-1)
    with torch.no_grad():
        native = _native(dense)
        if native is None:
            return dense.reshape(-1)[pattern.places]
        return native.collect(pattern, dense.detach().contiguous())


def turned(pattern: Pattern, values: Tensor) -> Tensor:
    """Return values in the order of the transposed pattern. Local."""
    order = pattern.turned[1]
    with torch.no_grad():
        native = _native(values)
        return values.detach()[order] if native is None else native.reorder(values.detach().contiguous(), order)


def _native(tensor: Tensor) -> Library | None:
    return versions.native() if tensor.device.type == "cpu" and tensor.dtype == torch.float32 else None
