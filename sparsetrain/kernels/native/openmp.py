"""The OpenMP library that torch computes with, so that both use the same threads."""

from __future__ import annotations

import ctypes
import pathlib

CALLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
NAMES = ("libgomp", "libiomp", "libomp")  # the latter two know the former's calls


def openmp_calls() -> tuple[int, ...] | None:
    """Return the addresses of CALLS in the one OpenMP library that this process has loaded; None without one.

    With several nobody can tell whose threads torch uses, so that is None too.
    """
    try:
        lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None  # not Linux
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    found = [path for path in paths if pathlib.Path(path).name.startswith(NAMES)]
    if len(found) != 1:
        return None
    try:
        library = ctypes.CDLL(found[0])
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in CALLS]
    except (OSError, AttributeError):
        return None
    return tuple(address for address in addresses if address is not None)
