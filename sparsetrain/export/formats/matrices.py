"""Masked matrices as torch's sparse ones: rows of entries, or rows of square blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.engine.checkpoint import Tensors
from sparsetrain.export.formats.packed import Packed, as_matrix, row_starts

EDGES = (64, 32, 16, 8, 4, 2)  # of blocks


class CSR(Packed):
    """Masked matrices as compressed sparse rows, which linear layers multiply by; a convolution's as one matrix."""

    layout = "csr"
    lacking = "no masked tensor is a matrix that its mask leaves something out of"

    def packs(self, mask: Tensor) -> bool:
        """See Packed."""
        return mask.ndim >= 2

    def parts(self, tensor: Tensor, mask: Tensor) -> Tensors:
        """See Packed."""
        kept = as_matrix(mask)
        return {"values": as_matrix(tensor)[kept], "crow": row_starts(kept), "col": torch.nonzero(kept)[:, 1].int()}


class BSR(Packed):
    """Masked matrices as rows of square blocks, where their masks keep or drop such blocks whole."""

    layout = "bsr"
    lacking = f"no mask is made of whole square blocks of {EDGES[-1]} x {EDGES[-1]} or more"

    def packs(self, mask: Tensor) -> bool:
        """See Packed."""
        return edge_of(mask) > 0 and bool(mask.any())

    def parts(self, tensor: Tensor, mask: Tensor) -> Tensors:
        """See Packed."""
        edge = edge_of(mask)
        kept = _blocks(as_matrix(mask), edge)[:, :, 0, 0]
        return {
            "values": _blocks(as_matrix(tensor), edge)[kept],
            "crow": row_starts(kept),
            "col": torch.nonzero(kept)[:, 1].int(),
        }


def edge_of(mask: Tensor) -> int:
    """Return the edge of the largest square blocks that a mask keeps or drops whole, 0 where there are none.

    Square ones alone: with others torch cannot multiply on a CPU.
    """
    if mask.ndim < 2:
        return 0
    matrix = as_matrix(mask)
    for edge in EDGES:
        if matrix.shape[0] % edge or matrix.shape[1] % edge:
            continue
        blocks = _blocks(matrix, edge).flatten(2)
        if bool((blocks.all(2) == blocks.any(2)).all()):
            return edge
    return 0


def _blocks(matrix: Tensor, edge: int) -> Tensor:
    """Return a matrix as [rows of blocks, columns of blocks, edge, edge]."""
    return matrix.reshape(matrix.shape[0] // edge, edge, matrix.shape[1] // edge, edge).transpose(1, 2)
