"""The native kernels built with the address and the undefined-behaviour sanitizer, and the environment they need.

A read beyond the end of a tensor then ends the process with a report, where it would otherwise go unseen: torch takes
the memory of each tensor by itself, so that all have guarded ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess

FLAGS = "-g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
PORTABLE = "-DST_PORTABLE"
OPTIONS = (
    "detect_leaks=0",  # what the interpreter never frees is no leak of the kernels'
    "abort_on_error=1",
    "allocator_may_return_null=1",
    "malloc_context_size=1",  # who allocated is plain from the case, and following the stack takes most of the time
    "quarantine_size_mb=16",
)


def environment(portable: bool) -> dict[str, str]:
    """Return this process's environment, changed so that a child loads sanitized kernels. Raises RuntimeError without
    a compiler that can make them. `portable`: without the code for wide vector registers."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("g++ is needed for --sanitize")
    command = [compiler, "-print-file-name=libasan.so"]
    runtime = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(runtime):
        raise RuntimeError("g++ has no address sanitizer")
    return {
        **os.environ,
        "CXX": f"{compiler} {FLAGS} {PORTABLE if portable else ''}",
        "SPARSETRAIN_KERNELS": "native",
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": ":".join(OPTIONS),
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
