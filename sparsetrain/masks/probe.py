"""What methods that choose before training ask of the model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Probe(Protocol):
    """Questions to the model with its present weights; all answers are equal on all ranks, by parameter name.

    Collective where the answer depends on data.
    """

    def gradient(self, batches: int) -> dict[str, Tensor]:
        """Return the mean gradient of the loss over the first `batches` batches of all ranks."""
        ...

    def hessian_gradient(self, batches: int) -> dict[str, Tensor]:
        """Return H g, the loss's Hessian times its mean gradient g, over the same batches."""
        ...

    def flow(self) -> dict[str, Tensor]:
        """Return dR/d|w| in float64, R being the sum of outputs for an input of ones when all weights are |w|."""
        ...
