"""One exchange in the making, and what it did."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

from torch import Tensor

from sparsetrain.collective.entries import Outcome
from sparsetrain.gradient.regimes.base import Turn


@dataclasses.dataclass
class ExchangeStats:
    """What the last exchange did: the density that was asked for, coordinates in the update set, entries that this
    rank chose, distinct places in the mean (0: not counted), the chosen entries' squared norm."""

    density: float = 1.0
    active: int = 0
    sent: int = 0
    distinct: int = 0
    sent_square: float = 0.0
    skipped: bool = False

    def energy(self, residual_norm: float) -> float:
        """Return the share of the squared norm of gradient plus residual that was sent; nan without a residual."""
        both = self.sent_square + residual_norm**2
        return self.sent_square / both if both > 0.0 else float("nan")


@dataclasses.dataclass
class Round:
    """One exchange in the making: gradients so far, names that each bucket waits for, the bucket that leaves next."""

    gradients: dict[str, Tensor]
    missing: list[set[str]]
    next: int
    stats: ExchangeStats
    turn: Turn
    futures: list[Future[Outcome]] = dataclasses.field(default_factory=list)
