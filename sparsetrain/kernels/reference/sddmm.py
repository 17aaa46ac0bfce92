"""The gradient at some places as the dense gradient that it is taken from, on any device."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.kernels.pattern import Pattern


def sddmm(pattern: Pattern, x: Tensor, dy: Tensor) -> Tensor:
    """Return what `kernels.sddmm` promises."""
    return (dy.t() @ x).reshape(-1)[pattern.places]
