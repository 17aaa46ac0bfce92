"""Windowed merge in plain numpy, and in plain torch for other devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

WINDOW = 1 << 18  # elements: 1 MiB, so that few calls are made and the window is still in cache


def merge_cpu(sources: Sequence[tuple[Tensor, Tensor]], out: Tensor, scale: float) -> Tensor:
    """Fill `out` as `kernels.merge` promises, and return it."""
    dense = out.detach().numpy()
    edges = np.arange(0, dense.size + WINDOW, WINDOW)
    lists = []
    for indices, values in sources:
        places = indices.numpy()
        lists.append((places, values.numpy(), np.searchsorted(places, edges)))
    for number, start in enumerate(range(0, dense.size, WINDOW)):
        window = dense[start : start + WINDOW]
        window.fill(0.0)
        for places, values, cuts in lists:
            part = slice(cuts[number], cuts[number + 1])
            # Places of one source are unique, so reading, adding and writing back loses nothing.
            with np.errstate(over="ignore", invalid="ignore"):
                window[places[part] - start] += values[part] * np.float32(scale)
    return out


def merge_device(sources: Sequence[tuple[Tensor, Tensor]], out: Tensor, scale: float) -> Tensor:
    """The same with torch's scatter on any device; one source after the other keeps the order of the sums."""
    out.zero_()
    for indices, values in sources:
        out.index_add_(0, indices, values * scale)
    return out
