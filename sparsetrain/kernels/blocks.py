"""Which square blocks of a weight matrix are kept, laid out for products of whole blocks."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

SIZES = (128, 64, 32, 16)  # of a block's edge; a matrix unit takes no smaller ones than the last


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The kept blocks of `size` x `size` places of a matrix [rows, width], row by row of blocks.

    All tensors are int32. Block b lies at `row`[b], `column`[b], in blocks; among the values of the kept places in
    ascending flat order its place (i, j) is `first`[b] + i * `stride`[b] + j. `by_row` [rows / size + 1] says where
    each row of blocks begins; the blocks of column c are `turned`[`by_column`[c] : `by_column`[c + 1]].
    """

    size: int
    rows: int
    width: int
    row: Tensor
    column: Tensor
    first: Tensor
    stride: Tensor
    by_row: Tensor
    by_column: Tensor
    turned: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Blocks | None:
        """Return the largest blocks that a bool mask [rows, width] consists of; None where these are too small."""
        for size in SIZES:
            if mask.shape[0] % size or mask.shape[1] % size:
                continue
            tiles = mask.view(mask.shape[0] // size, size, mask.shape[1] // size, size)
            kept = tiles.any(3).any(1)
            if bool((tiles.all(3).all(1) == kept).all()):
                return _laid(kept, size)
        return None

    @property
    def count(self) -> int:
        """Return how many blocks there are."""
        return self.row.numel()

    def gathered(self, values: Tensor) -> Tensor:
        """Return values [count x size x size] in ascending flat order of their places as [count, size, size]."""
        return values[self._places()]

    def spread(self, blocks: Tensor) -> Tensor:
        """Return what `gathered` took."""
        values = blocks.new_empty(blocks.numel())
        values[self._places()] = blocks
        return values

    def _places(self) -> Tensor:
        edge = torch.arange(self.size, device=self.row.device)
        begin, step = self.first.long()[:, None, None], self.stride.long()[:, None, None]
        return begin + edge[:, None] * step + edge


def _laid(kept: Tensor, size: int) -> Blocks:
    row, column = torch.nonzero(kept).unbind(1)
    by_row, by_column = (_starts(kept.sum(axis)) for axis in (1, 0))
    stride = size * by_row.diff()[row]
    first = size * size * by_row[row] + size * (torch.arange(len(row), device=row.device) - by_row[row])
    turned = torch.argsort(column, stable=True)
    parts = (row, column, first, stride, by_row, by_column, turned)
    return Blocks(size, kept.shape[0] * size, kept.shape[1] * size, *(part.int() for part in parts))


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
