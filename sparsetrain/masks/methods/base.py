"""What a mask method declares and does."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sparsetrain.masks.select import random, top


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a method may look at in one tensor: weights, mask, mean gradient (if declared), target count, progress.

    `progress` is the share of the schedule's span that is over; `generator` is the same on all ranks.
    """

    weight: Tensor
    mask: Tensor
    gradient: Tensor | None
    count: int
    progress: float
    generator: torch.Generator


class MaskMethod(abc.ABC):
    """A rule that says which weights of a tensor are active next. Forward set and update set are the mask."""

    scores: ClassVar[Literal["replicated", "mean_gradient"]] = "replicated"
    changes: ClassVar[bool] = True  # False: the first mask stays
    starts_dense: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    def initial(self, weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the first mask of a tensor: `count` random places, or all where the method starts dense."""
        if self.starts_dense:
            return torch.ones_like(weight, dtype=torch.bool)
        return random(weight.shape, count, generator).to(weight.device)

    def sparsity(self, final: float, ramp: float) -> float:
        """Return the sparsity that an update aims at; `ramp` is 1 at the last update."""
        return final

    @abc.abstractmethod
    def update(self, moment: Moment) -> Tensor:
        """Return the next mask of a tensor, with exactly `moment.count` places active."""


def drop_and_grow(mask: Tensor, keep: Tensor, grow: Tensor, fraction: float, count: int) -> Tensor:
    """Return the mask that keeps the best (1 - fraction) of the active by `keep` and grows by `grow` up to `count`.

    Growth is among all places not kept: a weight just dropped may come back, and then keeps its value (RigL).
    """
    active = int(mask.sum())
    kept = top(keep, min(count, active - int(fraction * active)), among=mask)
    return kept | top(grow, count - int(kept.sum()), among=~kept)
