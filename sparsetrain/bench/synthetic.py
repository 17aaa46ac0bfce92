"""A gradient for measurements: matrices of a model's size, equal on no two ranks but alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.gradient.layout import Shape

ROWS = 1000
TENSOR = 1_000_000  # elements of one tensor, about
SPREAD = 0.7  # of the logarithm of the tensors' scales
COMMON = 0.6  # amplitude of the part that all ranks share: 0.36 of the variance


class Gradient:
    """`flat` (fp32, `size` elements) and the same memory as `named` matrices of ROWS x `columns`.

    `size` is what was asked for, rounded down to whole rows. Raises ValueError below ROWS elements.
    """

    def __init__(self, size: int, rank: int) -> None:
        if size < ROWS:
            raise ValueError(f"size {size}: want at least {ROWS} elements")
        self.rank = rank
        self.count = max(1, round(size / TENSOR))
        self.rows, self.columns = ROWS, size // (self.count * ROWS)
        self.size = self.count * self.rows * self.columns
        self.shapes: dict[str, Shape] = {f"layer{i:04d}": (self.rows, self.columns) for i in range(self.count)}
        self.flat = torch.zeros(self.size)
        self.named = self.split(self.flat)
        scales = torch.randn(self.count, 1, generator=torch.Generator().manual_seed(1)).mul_(SPREAD).exp_()
        self._own_scale, self._common_scale = scales * (1 - COMMON**2) ** 0.5, scales * COMMON
        self._work = torch.zeros(self.count, self.rows * self.columns)

    def draw(self, step: int) -> None:
        """Fill the gradient with that of `step`; the same numbers for the same step and rank."""
        own, common = (torch.Generator().manual_seed(step * 100_003 + who) for who in (self.rank + 1, 0))
        flat = self.flat.view(self.count, -1)
        flat.normal_(generator=own).mul_(self._own_scale)
        flat.add_(self._work.normal_(generator=common).mul_(self._common_scale))

    def split(self, flat: Tensor) -> Mapping[str, Tensor]:
        """Return views of a flat tensor of this size, by name."""
        parts = flat.view(self.count, self.rows, self.columns).unbind()
        return dict(zip(self.shapes, parts, strict=True))
