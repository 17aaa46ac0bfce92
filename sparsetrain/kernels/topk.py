"""Exact top-k with error feedback in one pass over memory: sample, compensate, select, trim.

`torch.topk` on a whole buffer costs about a hundred memory passes; a threshold that is estimated a little low from a
sample turns the selection into one streaming pass, and only the few candidates that pass it are ranked. The result
is exact whatever the sample was. Ties are broken by (|value| descending, index ascending).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 16  # elements: three fp32 chunks stay in a core's L2 cache
SAMPLE = 1 << 15


def compensate_select(residual: Tensor | None, buffer: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (indices int32 ascending, values fp32) of the k largest |residual + buffer|.

    `buffer` (fp32, 1-D, contiguous, finite) is overwritten with residual + buffer, the selected places with zero:
    it is then the new residual, up to the rounding of the sent values. `residual` is only read. 1 <= k <= n.
    """
    if not 1 <= k <= buffer.numel():
        raise ValueError(f"k must be in 1..{buffer.numel()}, not {k}")
    if buffer.device.type != "cpu":
        return _select_device(residual, buffer, k)
    acc = buffer.numpy()
    old = None if residual is None else residual.numpy()
    found = _pass(old, acc, _low_threshold(old, acc, k))
    if found.size < k:
        # The sample was unlucky; acc is complete now, so ranking everything is simple and still exact.
        found = np.arange(acc.size, dtype=np.int64)
    chosen = _trim(acc, found, k)
    values = acc[chosen]
    acc[chosen] = 0.0
    return torch.from_numpy(chosen.astype(np.int32)), torch.from_numpy(values)


def _low_threshold(old: np.ndarray | None, acc: np.ndarray, k: int) -> np.float32:
    """Return a threshold that about k + 3 sigma elements of |old + acc| reach, from a strided sample."""
    if acc.size <= 4 * SAMPLE:
        return np.float32(0.0)
    # One position per stratum, drifting inside it, so that no period of the layers is met again and again.
    stride = acc.size // SAMPLE
    at = np.arange(SAMPLE, dtype=np.int64) * stride + (np.arange(SAMPLE, dtype=np.int64) * 7919) % stride
    sample = np.abs(acc[at] if old is None else acc[at] + old[at])
    expected = k / acc.size * SAMPLE
    rank = int(expected + 3.0 * np.sqrt(expected) + 8)
    if rank >= SAMPLE:
        return np.float32(0.0)
    return np.partition(sample, SAMPLE - rank)[SAMPLE - rank]


def _pass(old: np.ndarray | None, acc: np.ndarray, threshold: np.float32) -> np.ndarray:
    """Add `old` to `acc` chunk by chunk and return the ascending positions with |acc| >= threshold."""
    magnitude = np.empty(CHUNK, dtype=np.float32)
    hit = np.zeros(CHUNK, dtype=bool)
    words = hit.view(np.uint64)
    found = []
    for start in range(0, acc.size, CHUNK):
        part = acc[start : start + CHUNK]
        if old is not None:
            np.add(part, old[start : start + CHUNK], out=part)
        if threshold == 0.0:
            continue
        size = part.size
        hit[size:] = False
        np.abs(part, out=magnitude[:size])
        np.greater_equal(magnitude[:size], threshold, out=hit[:size])
        # Eight flags at a time: at 1 % density most words are empty.
        busy = np.flatnonzero(words)
        if busy.size:
            word, bit = np.nonzero(hit.reshape(-1, 8)[busy])
            found.append(busy[word] * 8 + bit + start)
    if threshold == 0.0:
        return np.arange(acc.size, dtype=np.int64)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _trim(acc: np.ndarray, found: np.ndarray, k: int) -> np.ndarray:
    """Return exactly k of the ascending positions `found`, by (|value| descending, index ascending)."""
    if found.size == k:
        return found
    magnitude = np.abs(acc[found])
    kth = np.partition(magnitude, found.size - k)[found.size - k]
    keep = magnitude > kth
    ties = np.flatnonzero(magnitude == kth)
    keep[ties[: k - int(keep.sum())]] = True
    return found[keep]


def _select_device(residual: Tensor | None, buffer: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same on an accelerator, with its own sort; no sampling, because a device's top-k is not the bottleneck."""
    if residual is not None:
        buffer.add_(residual)
    magnitude = buffer.abs()
    kth = torch.topk(magnitude, k, sorted=True).values[-1]
    above = torch.nonzero(magnitude > kth).flatten()
    ties = torch.nonzero(magnitude == kth).flatten()[: k - above.numel()]
    chosen = torch.cat([above, ties]).sort().values
    values = buffer[chosen]
    buffer[chosen] = 0.0
    return chosen.to(torch.int32), values
