"""The kinds of numbers that a job holds. A boolean is none of them, nor is anything infinite."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

LARGEST = 2**31 - 1


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    return value


Number = BeforeValidator(_no_boolean)
Positive = Annotated[int, Number, Field(ge=1, le=LARGEST)]
Count = Annotated[int, Number, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Number, Field(ge=0.0, le=1.0)]
Density = Annotated[float, Number, Field(gt=0.0, le=1.0)]
BelowOne = Annotated[float, Number, Field(ge=0.0, lt=1.0)]
Above0 = Annotated[float, Number, Field(gt=0.0, le=1e9)]
NotNegative = Annotated[float, Number, Field(ge=0.0, le=1e9)]
