"""At which steps masks change, and how far the run is then."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from sparsetrain.config.numbers import interval_of, steps_of


class Span:
    """Every `every`-th step, from `begin` on and strictly before `end`.

    `begin` and `end` up to 1 and `every` below 1 are shares of `steps`, more are steps.
    """

    def __init__(self, steps: int, begin: float, end: float, every: float) -> None:
        self.steps = steps
        self.begin = steps_of(begin, steps)
        self.end = steps_of(end, steps)
        self.every = interval_of(every, steps)

    def updates(self) -> list[int]:
        """Return the numbers of finished steps after which masks change."""
        first = max(1, -(-self.begin // self.every))
        return list(range(first * self.every, min(self.end, self.steps + 1), self.every))

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


class MaskSchedule(abc.ABC):
    """When masks change and to what sparsity. Equal arguments give equal answers on all ranks: there is no state."""

    rewinds: ClassVar[bool] = False  # True: at every update weights go back to the step `rewind`

    def __init__(self, config: Any, span: Span) -> None:
        self.config = config
        self.span = span
        self._updates = frozenset(self.updates())

    def updates(self) -> list[int]:
        """Return the numbers of finished steps after which masks change, ascending."""
        return self.span.updates()

    def is_update(self, step: int) -> bool:
        """Return whether masks change after `step` finished steps."""
        return step in self._updates

    @property
    def rewind(self) -> int:
        """Return the number of finished steps whose weights come back, where the schedule rewinds."""
        return 0

    def position(self, step: int) -> tuple[int, int]:
        """Return where the learning rate's schedule is after `step` finished steps, and how many steps it has."""
        return step, self.span.steps

    @abc.abstractmethod
    def sparsity(self, final: float, step: int) -> float:
        """Return the sparsity that the update after `step` finished steps aims at."""
