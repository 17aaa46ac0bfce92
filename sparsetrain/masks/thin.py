"""The largest values of a tensor, which are all that a growth rule looks at."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.kernels.select import select


@dataclasses.dataclass(frozen=True)
class Thin:
    """Some places of a tensor, int32 ascending, and the values there; it is `finite` where the tensor was."""

    shape: torch.Size
    places: Tensor
    values: Tensor
    finite: bool

    @classmethod
    def of(cls, tensor: Tensor, count: int) -> Thin:
        """Return the `count` largest magnitudes of a tensor, fp32; ties go to the lower place. Overwrites it."""
        found = select(None, tensor.reshape(-1), count)
        return cls(tensor.shape, found.indices, found.values, found.finite)

    def dense(self) -> Tensor:
        """Return the tensor with zeros at all other places; not-a-number everywhere where it was not finite."""
        if not self.finite:
            return torch.full(self.shape, torch.nan, device=self.values.device)
        flat = torch.zeros(self.shape.numel(), device=self.values.device)
        flat[self.places.long()] = self.values
        return flat.view(self.shape)
