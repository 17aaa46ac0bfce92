"""Selection in plain numpy (processors) and plain torch (other devices).

Chunks stay in a core's cache, and where a sample is taken no array of the buffer's length is ever allocated: fresh
pages cost more than the arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsetrain.kernels.sampling import Plan

CHUNK = 1 << 17
MAGNITUDE = np.uint32(0x7FFFFFFF)  # all bits but the sign: integers that are ordered as the magnitudes are
INFINITY = np.uint32(0x7F800000)  # not-a-number lies above
Range = tuple[int, int]


def select_cpu(
    old: Tensor | None, buffer: Tensor, k: int, scale: float, limits: Range | None, plan: Plan | None
) -> tuple[Tensor, Tensor] | None:
    """Return (indices, values) as `kernels.select` promises, None for a sum that is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # which is found below, and said
        return _select(old, buffer, k, scale, limits, plan)


def _select(
    old: Tensor | None, buffer: Tensor, k: int, scale: float, limits: Range | None, plan: Plan | None
) -> tuple[Tensor, Tensor] | None:
    acc = buffer.detach().numpy()
    before = None if old is None else old.detach().numpy()
    low, middle = _thresholds(before, acc, scale, plan)
    if limits is not None and plan is not None:
        low = middle
    found, values = _add_and_compare(before, acc, scale, low)
    magnitude = values.view(np.uint32) & MAGNITUDE
    if magnitude.size and magnitude.max() >= INFINITY:
        return None
    if limits is None or plan is None or not limits[0] <= found.size <= limits[1]:
        if found.size < k:
            # The sample was unlucky. The sum is complete now, so ranking everything is simple and still exact.
            found, values = np.arange(acc.size), acc
            magnitude = acc.view(np.uint32) & MAGNITUDE
        keep = _largest(magnitude, k)
        found, values = found[keep], values[keep]
    indices = found.astype(np.int32)
    acc[indices] = 0.0
    return torch.from_numpy(indices), torch.from_numpy(values)


def _thresholds(old: np.ndarray | None, acc: np.ndarray, scale: float, plan: Plan | None) -> np.ndarray:
    """Return the magnitudes (as bits) that a little more than k, and about k, elements reach; zeros without a plan."""
    if plan is None:
        return np.zeros(2, dtype=np.uint32)
    at = plan.positions()
    sample = acc[at]
    if old is not None:
        sample += old[at] if scale == 1.0 else old[at] * np.float32(scale)
    ranks = [plan.count - plan.low, plan.count - plan.middle]
    # An infinity in the sample must not hide smaller ones: they all have to be found.
    return np.minimum(np.partition(sample.view(np.uint32) & MAGNITUDE, ranks)[ranks], INFINITY)


def _add_and_compare(
    old: np.ndarray | None, acc: np.ndarray, scale: float, threshold: np.uint32
) -> tuple[np.ndarray, np.ndarray]:
    """Add scale * old to acc chunk by chunk; return the ascending positions that reach the threshold, and values."""
    magnitude = np.empty(CHUNK, dtype=np.float32)
    product = np.empty(CHUNK if scale != 1.0 else 0, dtype=np.float32)
    hit = np.empty(CHUNK, dtype=bool)
    found, values = [], []
    for start in range(0, acc.size, CHUNK):
        part = acc[start : start + CHUNK]
        size = part.size
        if old is not None:
            term = old[start : start + CHUNK]
            if scale != 1.0:
                term = np.multiply(term, np.float32(scale), out=product[:size])
            np.add(part, term, out=part)
        if threshold == 0:
            continue
        np.abs(part, out=magnitude[:size])
        # As integers, because not-a-number reaches no threshold as a number.
        np.greater_equal(magnitude[:size].view(np.uint32), threshold, out=hit[:size])
        local = np.flatnonzero(hit[:size])
        values.append(part[local])  # while they are in cache
        local += start
        found.append(local)
    if threshold == 0:
        return np.arange(acc.size), acc.copy()
    return np.concatenate(found), np.concatenate(values)


def _largest(magnitude: np.ndarray, k: int) -> np.ndarray:
    """Return a mask of the k largest, ties to the front."""
    kth = np.partition(magnitude, magnitude.size - k)[magnitude.size - k]
    keep = magnitude > kth
    ties = np.flatnonzero(magnitude == kth)
    keep[ties[: k - int(np.count_nonzero(keep))]] = True
    return keep


def select_device(
    old: Tensor | None, buffer: Tensor, k: int, scale: float, limits: Range | None, plan: Plan | None
) -> tuple[Tensor, Tensor] | None:
    """The same with torch's own sort, for any device: there top-k is not the bottleneck."""
    if old is not None:
        buffer.add_(old if scale == 1.0 else old * scale)
    magnitude = buffer.abs()
    if not bool(torch.isfinite(magnitude).all()):
        return None
    chosen = None
    if limits is not None and plan is not None:
        sample = magnitude[torch.from_numpy(plan.positions()).to(buffer.device)]
        threshold = torch.topk(sample, plan.middle).values[-1]
        chosen = torch.nonzero(magnitude >= threshold).flatten()
        if not limits[0] <= chosen.numel() <= limits[1]:
            chosen = None
    if chosen is None:
        chosen = largest(magnitude, k)
    values = buffer[chosen]
    buffer[chosen] = 0.0
    return chosen.to(torch.int32), values


def largest(magnitude: Tensor, k: int) -> Tensor:
    """Return the ascending positions (int64) of the k largest, ties to the lower position."""
    kth = torch.topk(magnitude, k).values[-1]
    above = torch.nonzero(magnitude > kth).flatten()
    ties = torch.nonzero(magnitude == kth).flatten()[: k - above.numel()]
    return torch.cat([above, ties]).sort().values
