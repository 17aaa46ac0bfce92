"""Updates by a list."""

from __future__ import annotations

import dataclasses

from sparsetrain.config.numbers import BelowOne, Point, steps_of
from sparsetrain.masks.schedule import MaskSchedule


class Explicit(MaskSchedule):
    """Updates at the listed points, to the listed sparsities or all to the final one."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`at` ascends (up to 1: shares of the run, above: steps); `sparsities` are as many, or none."""

        at: tuple[Point, ...] = (0.5,)
        sparsities: tuple[BelowOne, ...] = ()

        def __post_init__(self) -> None:
            if self.sparsities and len(self.sparsities) != len(self.at):
                raise ValueError(f"{len(self.sparsities)} sparsities for {len(self.at)} points")

    def updates(self) -> list[int]:
        """See MaskSchedule. Raises ValueError when the steps do not ascend from 1 on, within the run."""
        steps = [steps_of(point, self.span.steps) for point in self.config.at]
        if steps != sorted(set(steps)) or not all(0 < step < self.span.steps for step in steps):
            raise ValueError(f"masks.schedule.at: steps {steps} must ascend from 1 to before {self.span.steps}")
        return steps

    def sparsity(self, final: float, step: int) -> float:
        """See MaskSchedule."""
        past = [n for n, update in enumerate(self.updates()) if update <= step]
        return self.config.sparsities[past[-1]] if self.config.sparsities and past else final
