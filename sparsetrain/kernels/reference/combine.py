"""Union of two sparse lists in plain torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what `kernels.combine` promises."""
    places = torch.unique(torch.cat([left[0], right[0]]))
    values = torch.zeros(places.numel(), dtype=torch.float32, device=places.device)
    known = torch.zeros(places.numel(), dtype=torch.bool, device=places.device)
    at = torch.searchsorted(places, left[0])
    values[at], known[at] = left[1], True
    at = torch.searchsorted(places, right[0])
    # Not zero plus the value: that would lose the sign of a zero.
    values[at] = torch.where(known[at], values[at] + right[1], right[1])
    return places, values
