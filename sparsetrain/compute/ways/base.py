"""What a way to multiply declares: which layers and masks it is for, and the two passes."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from sparsetrain.compute.geometry import Geometry
from sparsetrain.config.component import NoOptions
from sparsetrain.kernels.pattern import Pattern


class Way(abc.ABC):
    """Multiplies by a weight of which only the values at the places of a mask are kept, in ascending flat order.

    All ways give the same results to rounding: those of the dense layer whose masked weights are zero. A way is made
    anew when the mask changes. Its passes get all tensors in the type that it computes in.
    """

    Config = NoOptions
    only: torch.dtype | None = None  # the type that it computes in, whatever the model does
    narrow = False  # gives out only what some weight computes, to a reader that takes nothing else
    # The outputs that it gives when `narrow` and the inputs that it takes then, bool; None where it cannot.
    gives: Tensor | None = None
    takes: Tensor | None = None

    def __init__(self, geometry: Geometry, mask: Tensor, pattern: Pattern) -> None:
        self.geometry, self.pattern = geometry, pattern

    @classmethod
    def refuses(cls, geometry: Geometry, mask: Tensor, pattern: Pattern, dtype: torch.dtype) -> str:
        """Return why this way is not for a mask of a layer that computes in `dtype`; nothing where it is."""
        return ""

    def computes_in(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type that it computes in where the model does in `dtype`."""
        return self.only or dtype

    def bias_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of the bias."""
        return self.geometry.bias_gradient(dy)

    @abc.abstractmethod
    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer gives out."""

    @abc.abstractmethod
    def backward(self, x: Tensor, values: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Return the gradients of input and values, those that are wanted."""
