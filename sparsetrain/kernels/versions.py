"""Which version of the kernels serves this process: compiled code, or the plain reference.

`SPARSETRAIN_KERNELS` decides: `auto` (the default) takes compiled code where a compiler is found and the build
succeeds, else says why in one logged line and takes the reference; `native` insists and raises; `reference` never
compiles. All versions give the same bits, so ranks may differ. The choice is made at first use and then kept.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import threading

from sparsetrain.config.errors import JobError
from sparsetrain.kernels.native.build import BuildError, build_and_load
from sparsetrain.kernels.native.library import Library
from sparsetrain.registry import nearest

VARIABLE = "SPARSETRAIN_KERNELS"
CHOICES = ("auto", "native", "reference")
FIRST = threading.Lock()  # two threads at their first kernel must not build or warn twice


def native() -> Library | None:
    """Return the compiled library, None where the reference serves.

    Raises JobError for an unknown choice, and where `native` is asked for and cannot be had.
    """
    with FIRST:
        return _choice()[0]


def describe() -> str:
    """Return which version serves and why, in a line: "native, g++ 12.2.0, /path/to/file.so" or "reference (...)"."""
    with FIRST:
        return _choice()[1]


@functools.cache
def triton() -> bool:
    """Say whether CUDA tensors are served by Triton; otherwise plain torch serves them, as `reference` asks for."""
    return _wanted() != "reference" and importlib.util.find_spec("triton") is not None


def _wanted() -> str:
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in CHOICES:
        raise JobError(f"{VARIABLE}={wanted}: must be one of {', '.join(CHOICES)}{nearest(wanted, list(CHOICES))}")
    return wanted


@functools.cache
def _choice() -> tuple[Library | None, str]:
    wanted = _wanted()
    if wanted == "reference":
        return None, f"reference ({VARIABLE}=reference)"
    try:
        library, built = build_and_load(os.environ)
    except BuildError as error:
        if wanted == "native":
            raise JobError(f"{VARIABLE}=native: {error}") from None
        logging.getLogger(__name__).warning("no native kernels, the reference serves: %s", error)
        return None, f"reference ({error})"
    return library, f"native, {built}"
