"""Which schedule a job's masks follow, the one that it names or its method's own, and what each update aims at."""

from __future__ import annotations

from typing import Any

from sparsetrain import registry
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.schedule import MaskSchedule, Span


def timing(config: Masks, span: Span) -> tuple[Any, MaskSchedule]:
    """Return the MaskMethod and the schedule of a job's masks. Raises JobError where the schedule does not fit."""
    method = config.method.build()
    try:
        if config.schedule is not None:
            return method, config.schedule.build(span)
        cls: Any = registry.load("mask_schedule", method.schedule)
        return method, cls(adapter(cls.Config).validate_python({}), span)
    except ValueError as error:
        raise JobError(str(error)) from error


def aims(method: Any, schedule: MaskSchedule, span: Span, final: float, step: int) -> tuple[float, float]:
    """Return the sparsity of the forward set after the update at `step`, and the schedule's: the same one unless the
    method grows above the budget, which the last update does not."""
    budget = schedule.sparsity(final, step)
    last = step >= max(schedule.updates())
    return budget if last else method.above(budget, span.fraction(step)), budget
