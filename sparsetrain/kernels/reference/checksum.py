"""The checksum's sum in numpy."""

from __future__ import annotations

import numpy as np
from torch import Tensor

CHUNK = 1 << 16  # words
LENGTH_FACTOR = 0x9E3779B97F4A7C15


def checksum_cpu(data: Tensor) -> int:
    """Return the unfolded 64-bit sum of contiguous uint8 `data`."""
    plain = data.numpy()
    whole = plain.size // 8
    tail = np.zeros(8, dtype=np.uint8)
    tail[: plain.size - 8 * whole] = plain[8 * whole :]
    total = int(tail.view("<u8")[0]) * (2 * whole + 1) + plain.size * LENGTH_FACTOR
    factors = 2 * np.arange(CHUNK, dtype=np.uint64) + np.uint64(1)
    for start in range(0, whole, CHUNK):
        # A copy, because a slice of a message need not lie on a multiple of eight.
        words = np.frombuffer(plain[8 * start : 8 * min(start + CHUNK, whole)].tobytes(), dtype="<u8")
        total += int((words * factors[: words.size]).sum()) + 2 * start * int(words.sum())
    return total & 0xFFFFFFFFFFFFFFFF
