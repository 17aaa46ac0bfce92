"""The kinds of numbers that a job holds. A boolean is none of them, nor is anything infinite."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

LARGEST = 2**31 - 1


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    return value


Number = BeforeValidator(_no_boolean)
Positive = Annotated[int, Number, Field(ge=1, le=LARGEST)]
Few = Annotated[int, Number, Field(ge=1, le=10_000)]  # of what takes a step, or memory, each
Count = Annotated[int, Number, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Number, Field(ge=0.0, le=1.0)]
Density = Annotated[float, Number, Field(gt=0.0, le=1.0)]
BelowOne = Annotated[float, Number, Field(ge=0.0, lt=1.0)]
Inside = Annotated[float, Number, Field(gt=0.0, lt=1.0)]
Above0 = Annotated[float, Number, Field(gt=0.0, le=1e9)]
NotNegative = Annotated[float, Number, Field(ge=0.0, le=1e9)]
Finite = Annotated[float, Number, Field(ge=-1e9, le=1e9)]


def _whole_above_one(value: float) -> float:
    if value > 1 and value != int(value):
        raise PydanticCustomError("number", "must be a share of the run (at most 1) or a whole number of steps")
    return int(value) if value > 1 else value


# A point in the run, or a length: shares of it as fractions, steps as whole numbers.
Point = Annotated[float, Number, Field(ge=0.0, le=LARGEST), AfterValidator(_whole_above_one)]


def steps_of(point: float, steps: int) -> int:
    """Return the step at a point of the run: up to 1 a share of `steps`, above it a step itself."""
    return round(point * steps) if point <= 1 else int(point)


def interval_of(length: float, steps: int) -> int:
    """Return the steps that a length means: below 1 a share of `steps`, at least one step; else steps."""
    return max(1, round(length * steps)) if length < 1 else int(length)
