"""How many weights have ever been active: in-time over-parameterisation (ITOP, Liu et al., ICML 2021)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsetrain.masks.maskset import MaskSet


class Explored:
    """The union of all forward sets so far; the same on all ranks."""

    def __init__(self, masks: MaskSet) -> None:
        self.union = MaskSet(dict(masks.masks))

    def add(self, masks: MaskSet) -> None:
        """Join the forward sets of an update."""
        self.union = MaskSet({name: mask | self.union.masks[name] for name, mask in masks.masks.items()})

    def fraction(self) -> float:
        """Return R_s: the weights that have ever been active, as a share of all that are masked."""
        return 1.0 - self.union.sparsity()

    def packed(self) -> dict[str, Tensor]:
        """Return the union as bits by name."""
        return self.union.packed()

    def load(self, packed: Mapping[str, Tensor]) -> None:
        """Put back what `packed` returned. Raises ValueError when it does not fit."""
        self.union = MaskSet.from_packed(packed, self.union.masks, 0)
