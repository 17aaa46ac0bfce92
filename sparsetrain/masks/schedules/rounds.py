"""Rounds of training that each end with a prune and begin with rewound weights."""

from __future__ import annotations

import dataclasses

from sparsetrain.config.numbers import Few, Point, steps_of
from sparsetrain.masks.schedule import MaskSchedule


class Rounds(MaskSchedule):
    """As many prunes as `rounds`, each of the same share of what is left: after n of N the density is d^(n / N).

    The first stretch of training has L steps from 0 on, each later one L - k from the step k to which weights are
    rewound; what the run has beyond whole stretches, fewer than N + 1 steps, lengthens the last one.
    """

    rewinds = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`rounds` are the prunes. `rewind` is k: up to 1 a share of the run, above it a step."""

        rounds: Few = 5
        rewind: Point = 0.0

    @property
    def rewind(self) -> int:
        """See MaskSchedule."""
        return steps_of(self.config.rewind, self.span.steps)

    @property
    def length(self) -> int:
        """Return L, the steps of the first stretch. Raises ValueError where the run is too short for all of them."""
        rounds, steps = self.config.rounds, self.span.steps
        length = (steps + rounds * self.rewind) // (rounds + 1)
        if length <= self.rewind:
            raise ValueError(
                f"masks.schedule.rewind: step {self.rewind} with {rounds} rounds in {steps} steps; "
                f"allowed: below {max(0, steps - rounds)}, or fewer rounds"
            )
        return length

    def updates(self) -> list[int]:
        """See MaskSchedule."""
        length = self.length
        return [length + n * (length - self.rewind) for n in range(self.config.rounds)]

    def sparsity(self, final: float, step: int) -> float:
        """See MaskSchedule."""
        done = sum(update <= step for update in self.updates())
        return 1.0 - (1.0 - final) ** (done / self.config.rounds)

    def position(self, step: int) -> tuple[int, int]:
        """Return where the stretch is that `step` falls into: from k on after a rewind, of L."""
        begun = [update for update in self.updates() if update <= step]
        place = self.rewind + step - begun[-1] if begun else step
        return min(place, self.length - 1), self.length
