"""Sparsity that climbs from update to update; the last update reaches the final sparsity exactly."""

from __future__ import annotations

import dataclasses
import math

from sparsetrain.config.numbers import BelowOne
from sparsetrain.masks.schedule import MaskSchedule


class Linear(MaskSchedule):
    """The sparsity climbs along a line from `initial` to the final one."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`initial` is the sparsity at `begin`."""

        initial: BelowOne = 0.0

    def sparsity(self, final: float, step: int) -> float:
        """See MaskSchedule."""
        return final + (self.config.initial - final) * (1.0 - self.rise(self.span.ramp(step)))

    def rise(self, progress: float) -> float:
        """Return the share of the way that is done when `progress` of the time is."""
        return progress


class Cubic(Linear):
    """The sparsity climbs fast, then ever slower: final + (initial - final) (1 - progress)^3 (Zhu and Gupta 2017)."""

    def rise(self, progress: float) -> float:
        """See Linear."""
        return 1.0 - (1.0 - progress) ** 3


class Cosine(Linear):
    """The sparsity climbs as half a cosine wave, slow at both ends."""

    def rise(self, progress: float) -> float:
        """See Linear."""
        return (1.0 - math.cos(math.pi * progress)) / 2.0
