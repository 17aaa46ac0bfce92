"""A structure as an index layout: weights as groups of units, and the exact choice of units inside each group."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from sparsetrain.masks.select import best


@dataclasses.dataclass(frozen=True)
class Layout:
    """`groups` x `units` x `size` weights: a unit is kept or dropped whole, every group keeps equally many units.

    `shape` is the tensor's; `order` lists its flat positions group by group and unit by unit (None: as they lie).
    """

    shape: tuple[int, ...]
    groups: int
    units: int
    size: int
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if self.groups * self.units * self.size != math.prod(self.shape):
            raise ValueError(f"{self.groups} x {self.units} x {self.size} weights do not make {self.shape}")

    def quota(self, count: int) -> int:
        """Return how many units each group keeps when about `count` weights are active."""
        return min(self.units, max(0, round(count / (self.groups * self.size))))

    def whole(self, count: int) -> int:
        """Return the number of active weights nearest to `count` that whole units allow."""
        return self.quota(count) * self.groups * self.size

    def pool(self, scores: Tensor) -> Tensor:
        """Return the mean score of each unit, float64 [groups, units] on the CPU; rank for rank the same bits."""
        scores = self.arranged(scores.detach()).double()
        return scores.squeeze(2) if self.size == 1 else scores.mean(2)

    def active(self, mask: Tensor) -> Tensor:
        """Return which units are wholly active, bool [groups, units]."""
        return self.arranged(mask).all(2)

    def expand(self, units: Tensor) -> Tensor:
        """Return a tensor of `shape` on the CPU in which every weight has what its unit has in `units`: of chosen units
        the mask."""
        return self.restored(units.unsqueeze(2).expand(self.groups, self.units, self.size))

    def restored(self, arranged: Tensor) -> Tensor:
        """Return the tensor, on the CPU, whose weights `arranged` holds as [groups, units, size] or flat."""
        flat = arranged.reshape(-1)
        if self.order is not None:
            tensor = torch.empty_like(flat)
            tensor[self.order] = flat
            flat = tensor
        return flat.reshape(self.shape)

    def choose(self, scores: Tensor, quota: int | Tensor, among: Tensor | None = None) -> Tensor:
        """Return which units, bool [groups, units], are the best `quota` of each group by `scores`; see select.best."""
        return best(scores, quota, among)

    def fill(self, kept: Tensor, scores: Tensor, quota: int) -> Tensor:
        """Return the units that are kept and the best others, `quota` in each group."""
        return kept | best(scores, quota - kept.sum(1), among=~kept)

    def top(self, scores: Tensor, count: int, among: Tensor | None = None) -> Tensor:
        """Return the mask of the units with the highest mean scores among those wholly in `among`; ties go to the
        lower unit. Raises ValueError when a candidate's score is NaN or a group has too few candidates."""
        candidates = None if among is None else self.active(among)
        return self.expand(self.choose(self.pool(scores), self.quota(count), candidates)).to(scores.device)

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the mask of the best units by random scores: drawn without replacement in each group."""
        lots = torch.rand(self.groups, self.units, generator=generator, dtype=torch.float64)
        return self.expand(self.choose(lots, self.quota(count)))

    def arranged(self, tensor: Tensor) -> Tensor:
        """Return the tensor's weights, on the CPU, as [groups, units, size]."""
        flat = tensor.reshape(-1).cpu()
        if self.order is not None:
            flat = flat[self.order]
        return flat.view(self.groups, self.units, self.size)
