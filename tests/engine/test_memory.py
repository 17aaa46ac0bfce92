"""Freed memory stays: seen from the faults of a process that frees and takes the same amount again and again."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from sparsetrain.engine.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def work():
    tensors = [torch.ones(4 << 20) for _ in range(4)]  # 16 MiB each
    return float(sum(each[0] for each in tensors))

for _ in range(4):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif("glibc" not in __import__("platform").libc_ver()[0], reason="another C library than glibc")
def test_a_second_round_touches_no_new_page():
    # Left to itself glibc gives back only what lies at the top of the heap, which at times is something else.
    given_back = max(faults("leave") for _ in range(4))
    assert 5 * faults("keep") < given_back
