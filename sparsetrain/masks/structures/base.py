"""What a structure declares: which weights are kept or dropped together."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from sparsetrain.config.errors import JobError
from sparsetrain.masks.layout import Layout


class Structure(abc.ABC):
    """A structure is an index layout and nothing else: methods score weights, the layout pools scores to units."""

    balanced: ClassVar[bool] = False  # True: every group keeps equally many, so layers cannot be ranked together
    couples: ClassVar[str] = ""  # the kind of the model's couplings that are laid out, instead of single tensors

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def density(self) -> float | None:
        """Return the only density that this structure can end at, or None when any will do."""
        return None

    @abc.abstractmethod
    def layout(self, name: str, shape: tuple[int, ...]) -> Layout:
        """Return the layout of a tensor. Raises JobError, naming the tensor, when the structure does not fit it."""


def refuse(name: str, shape: tuple[int, ...], reason: str) -> JobError:
    """Return the error of a tensor that a structure does not fit."""
    return JobError(f"masks.structure: {name} {list(shape)} {reason}; masks.exclude leaves a tensor dense")
