"""Where a selection looks before its one pass over memory, and which ranks of the sample become its thresholds.

One position is taken from each of `count` equal strata, and it drifts from stratum to stratum, so that no period of
the layers is met again and again. All versions sample the same positions, so that a threshold that decides the
result (and not only the speed) is the same everywhere.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

SMALLEST = 1 << 14  # elements: below, ranking everything is as quick as sampling
FEWEST, MANY, MOST = 1 << 11, 1 << 14, 1 << 15  # sampled positions
DRIFT = 7919


@dataclasses.dataclass(frozen=True)
class Plan:
    """`count` (a power of two) positions of `size`; the sample's `low`-th, `middle`-th, `high`-th largest magnitudes.

    About k + 3 sigma elements reach the low threshold, k the middle one, k - 3 sigma the high one; `high` is 0 when
    the sample is too small to tell. 1 <= middle <= low <= count, high <= middle.
    """

    size: int
    count: int
    low: int
    middle: int
    high: int

    @property
    def stride(self) -> int:
        """Return the length of the shortest stratum."""
        return self.size // self.count

    @property
    def room(self) -> int:
        """Return for how many candidates there should be memory: twice as many as are expected, and some."""
        return min(self.size, 2 * self.low * self.size // self.count + (1 << 16))

    def positions(self) -> np.ndarray:
        """Return the sampled positions, int64 ascending: i * size // count + i * DRIFT % stride."""
        at = np.arange(self.count, dtype=np.int64)
        return at * self.size // self.count + at * (DRIFT % self.stride) % self.stride


def plan(size: int, k: int) -> Plan | None:
    """Return where to look for the `k` largest of `size` elements; None where looking at all of them is better."""
    if size < SMALLEST or 2 * k > size:
        return None
    # Each position is a cache miss or two; a smaller sample leaves more places to correct.
    wanted = max(FEWEST, min(MANY, size // 128), min(MOST, size // 1024))
    count = 1 << wanted.bit_length() - 1
    expected = k * count / size
    spread = 3.0 * math.sqrt(expected)
    # The 8 is for small counts, whose upper tail is longer than three standard deviations of a normal one.
    low = int(expected + spread + 8.0)
    return Plan(size, count, low, max(1, round(expected)), max(0, int(expected - spread)))
