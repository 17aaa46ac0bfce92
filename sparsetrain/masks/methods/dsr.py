"""Dynamic sparse reparameterisation (Mostafa and Wang, ICML 2019)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.config.numbers import Above0, Fraction
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.base import MaskMethod, Moment
from sparsetrain.masks.reallocation import STRUCTURES, reallocated
from sparsetrain.masks.select import best
from sparsetrain.masks.sources import Tensors, Values


class DSR(MaskMethod):
    """Drops what is smaller than one threshold for all layers, grows as many at random, in each layer in proportion
    to what it has left; the total is exact. The threshold halves or doubles until it drops about what it should.
    Needs nothing on the wire."""

    structures = STRUCTURES

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`drop_fraction` of the active weights is what an update should drop; `threshold` is the first one."""

        drop_fraction: Fraction = 0.1
        threshold: Above0 = 1e-3

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.threshold = config.threshold

    def allocate(self, moments: Mapping[str, Moment], counts: dict[str, int]) -> dict[str, int]:
        """See MaskMethod; a layer with nothing left gets nothing, unless that holds for all."""
        kept = {name: int(self._standing(moment).sum()) for name, moment in moments.items()}
        return reallocated(moments, counts, kept, kept)

    def update(self, moment: Moment) -> Tensor:
        """Return what reaches the threshold, and random others up to the count."""
        layout, quota = moment.layout, moment.layout.quota(moment.count)
        standing, lots = self._standing(moment), torch.rand(moment.mask.shape, generator=moment.generator)
        kept = best(layout.pool(moment.weight.abs()), standing.sum(1).clamp(max=quota), among=standing)
        return layout.expand(kept | best(layout.pool(lots), quota - kept.sum(1), among=~kept)).to(moment.mask.device)

    def settle(self, old: MaskSet, new: MaskSet, weights: Values, signal: Values) -> Tensors:
        """Move the threshold: half of it after 10 % more than what should have been dropped, twice after 10 % less."""
        active = sum(old.counts().values())
        below = sum(int((mask & (weights[name].abs() < self.threshold)).sum()) for name, mask in old.masks.items())
        target = self.config.drop_fraction * active
        if below > 1.1 * target:
            self.threshold /= 2.0
        elif below < 0.9 * target:
            self.threshold *= 2.0
        return {}

    def state(self) -> Tensors:
        """Return the threshold."""
        return {"threshold": torch.tensor([self.threshold], dtype=torch.float64)}

    def load_state(self, state: Tensors) -> None:
        """See MaskMethod."""
        threshold = float(state["threshold"])
        if not 0.0 < threshold < math.inf:
            raise ValueError(f"a threshold of {threshold}")
        self.threshold = threshold

    def _standing(self, moment: Moment) -> Tensor:
        """Return the active units, bool [groups, units], whose mean |w| reaches the threshold."""
        return moment.layout.active(moment.mask) & (moment.layout.pool(moment.weight.abs()) >= self.threshold)
