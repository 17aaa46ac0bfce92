"""Sparse and dense phases in turn."""

from __future__ import annotations

import dataclasses

from sparsetrain.config.numbers import Point, interval_of, steps_of
from sparsetrain.masks.schedule import MaskSchedule


class Phases(MaskSchedule):
    """Dense at first, then sparse and dense in turn, sparse for good from `finish` on (AC/DC, Peste et al. 2021)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`warmup` and `finish` up to 1, `sparse` and `dense` below 1 are shares of the run, more are steps."""

        warmup: Point = 0.1
        sparse: Point = 0.05
        dense: Point = 0.05
        finish: Point = 0.9

        def __post_init__(self) -> None:
            if not self.sparse or not self.dense:
                raise ValueError("sparse and dense phases must be longer than 0")

    def updates(self) -> list[int]:
        """See MaskSchedule."""
        return list(self._phases())

    def sparsity(self, final: float, step: int) -> float:
        """Return `final` where a sparse phase begins, 0 where a dense one does."""
        phases = self._phases()
        return final if phases[max(update for update in phases if update <= step)] else 0.0

    def _phases(self) -> dict[int, bool]:
        """Return at which step a phase begins, and whether it is a sparse one."""
        steps, config = self.span.steps, self.config
        lengths = {True: interval_of(config.sparse, steps), False: interval_of(config.dense, steps)}
        finish, step, sparse = steps_of(config.finish, steps), max(1, steps_of(config.warmup, steps)), True
        if step >= finish:
            raise ValueError(f"masks.schedule.warmup: ends at step {step}; allowed: before finish, step {finish}")
        phases: dict[int, bool] = {}
        while step < finish:
            phases[step] = sparse
            step, sparse = step + lengths[sparse], not sparse
        if not phases[max(phases)]:
            phases[finish] = True
        return phases
