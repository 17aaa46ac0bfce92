"""Memory that a step frees stays with the process."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h; 32 MiB is the most that it takes for the former.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
MMAP_FROM, TRIM_FROM = 32 << 20, 2**31 - 1  # bytes


def keep_freed_memory() -> bool:
    """Tell glibc not to give back what is freed; return whether it agreed (False on other C libraries).

    Every step frees its activations. Given back, they return page by page through faults: up to 16 000 in a step of a
    GPT of 10 million weights, a tenth of its time. In return the process stays as large as it has ever been.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_FROM)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_FROM))
