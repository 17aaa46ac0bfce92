"""Which places of a weight matrix are kept, laid out for products with what lies there."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

SEGMENT = 512  # columns; native/tiles.h has the same numbers
TOGETHER = 4  # rows


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The kept places of a matrix [rows, width], row by row with ascending columns (CSR).

    `starts` int32 [rows + 1] says where each row begins, `columns` int32 [count] which columns it has, `segments` int32
    [ceil(width / 512) + 1, rows] where each row enters each range of 512 columns. Values of these places, in this
    order, are all that a product needs beside it.
    """

    rows: int
    width: int
    starts: Tensor
    columns: Tensor
    segments: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Pattern:
        """Return the pattern of a bool mask; all axes behind the first are columns. Raises ValueError for one axis."""
        if mask.dtype != torch.bool or mask.ndim < 2:
            raise ValueError(f"a mask is bool with two axes or more, not {mask.dtype} {list(mask.shape)}")
        return _laid(len(mask), math.prod(mask.shape[1:]), torch.nonzero(mask.reshape(-1)).flatten())

    @property
    def count(self) -> int:
        """Return how many places there are."""
        return self.columns.numel()

    @property
    def density(self) -> float:
        """Return the kept share of all places."""
        return self.count / max(1, self.rows * self.width)

    @property
    def row_of(self) -> Tensor:
        """Return the row of each place, int64."""
        return torch.repeat_interleave(torch.arange(self.rows, device=self.starts.device), self.starts.diff().long())

    @functools.cached_property
    def together(self) -> bool:
        """Return whether rows come in fours that have the same columns, as blocks have them."""
        if self.rows % TOGETHER or not self.count:
            return False
        row, starts = self.row_of, self.starts.long()
        lengths = starts.diff().view(-1, TOGETHER)
        if not bool((lengths == lengths[:, :1]).all()):
            return False
        places = torch.arange(self.count, device=row.device) - starts[row] + starts[row - row % TOGETHER]
        return torch.equal(self.columns[places], self.columns)

    @property
    def places(self) -> Tensor:
        """Return the ascending flat positions, int64."""
        return self.row_of * self.width + self.columns

    @functools.cached_property
    def turned(self) -> tuple[Pattern, Tensor]:
        """Return the pattern of the transposed matrix and, int32 [count], which value each of its places takes."""
        order = torch.argsort(self.columns, stable=True)
        places = self.columns[order].long() * self.rows + self.row_of[order]
        return _laid(self.width, self.rows, places), order.int()

    def dense(self, values: Tensor) -> Tensor:
        """Return the matrix [rows, width] with `values` [count] at its places and zeros elsewhere."""
        flat = torch.zeros(self.rows * self.width, dtype=values.dtype, device=values.device)
        flat[self.places] = values
        return flat.view(self.rows, self.width)

    def nbytes(self) -> int:
        """Return the bytes of the pattern, the transposed one included where it has been asked for."""
        own = self.starts.nbytes + self.columns.nbytes + self.segments.nbytes
        if "turned" in self.__dict__:
            pattern, order = self.turned
            own += pattern.nbytes() + order.nbytes
        return own


def _laid(rows: int, width: int, places: Tensor) -> Pattern:
    """Return the pattern of ascending flat positions."""
    ends = torch.tensor([*range(0, width, SEGMENT), width], device=places.device)
    entries = torch.arange(rows, device=places.device) * width + ends[:, None]
    segments = torch.searchsorted(places, entries.reshape(-1)).view(len(ends), rows)
    starts = torch.cat([segments[0], segments[-1][-1:]]) if rows else segments.new_zeros(1)
    columns = places % width if width else places
    return Pattern(rows, width, starts.int(), columns.int(), segments.int().contiguous())
