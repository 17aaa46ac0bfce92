"""At which steps masks change, and how far the run is then."""

from __future__ import annotations

import math


class MaskSchedule:
    """Updates after every `every`-th step, from `begin` on and strictly before `end` (both shares of `steps`)."""

    def __init__(self, steps: int, begin: float, end: float, every: int) -> None:
        self.begin = round(begin * steps)
        self.end = round(end * steps)
        self.every = every

    def updates(self) -> list[int]:
        """Return the numbers of finished steps after which masks change."""
        first = max(1, -(-self.begin // self.every))
        return list(range(first * self.every, self.end, self.every))

    def is_update(self, step: int) -> bool:
        """Return whether masks change after `step` finished steps."""
        return step > 0 and step % self.every == 0 and self.begin <= step < self.end

    def fraction(self, step: int) -> float:
        """Return how much of the span from begin to end is over, 0 to 1."""
        return min(1.0, max(0.0, (step - self.begin) / max(1, self.end - self.begin)))

    def ramp(self, step: int) -> float:
        """Return the same, but so that it is exactly 1 at the last update: a ramp then reaches its target."""
        updates = self.updates()
        last = updates[-1] if updates else self.end
        if step >= last:
            return 1.0
        return max(0.0, (step - self.begin) / (last - self.begin))


def cubic(final: float, progress: float, initial: float = 0.0) -> float:
    """Return the sparsity final + (initial - final) (1 - progress)^3 (Zhu and Gupta 2017)."""
    return final + (initial - final) * (1.0 - progress) ** 3


def cosine_drop(alpha: float, progress: float) -> float:
    """Return the share of active weights to drop, alpha / 2 (1 + cos(pi progress)) (RigL, equation 1)."""
    return alpha / 2.0 * (1.0 + math.cos(math.pi * progress))
