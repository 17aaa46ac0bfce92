"""Whether the MPI library takes tensors where they lie on a GPU."""

from __future__ import annotations

import ctypes
from typing import Any


def gpu_aware(mpi: Any) -> bool:
    """Return what the library behind mpi4py's module `mpi` says of CUDA; False where it does not say.

    Open MPI and MPICH both have `int MPIX_Query_cuda_support(void)` since 2.0 and 4.0; it answers for the library as it
    was built and as it runs now (MPIR_CVAR_ENABLE_GPU=0 switches MPICH's off). MPI must have been started.
    """
    try:
        ask = ctypes.CDLL(mpi.__file__).MPIX_Query_cuda_support
    except (OSError, AttributeError):
        return False
    ask.restype, ask.argtypes = ctypes.c_int, []
    return bool(ask() == 1)
