import os
import subprocess
import sys
import textwrap

import pytest
import torch

from sparsetrain.kernels.native.openmp import openmp_calls

THREADS = """
    import os, torch
    from sparsetrain.kernels.merge import merge
    from sparsetrain.kernels.versions import native
    assert native() is not None
    torch.set_num_threads(2)
    torch.zeros(4_000_000).add_(1.0)  # torch makes its threads
    before = len(os.listdir("/proc/self/task"))
    places = torch.arange(0, 4_000_000, 100, dtype=torch.int32)
    out = torch.empty(4_000_000)
    for _ in range(20):
        merge([(places, torch.ones(places.numel()))], out, 1.0)
    print(before, len(os.listdir("/proc/self/task")), float(out.sum()))
"""


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="this torch computes without OpenMP")
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
def test_the_kernels_find_the_threads_that_torch_uses(libraries):
    calls = openmp_calls()
    assert calls is not None and len(calls) == 3 and all(calls)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(THREADS)], capture_output=True, text=True, timeout=100, check=True
    )
    before, after, total = done.stdout.split()
    assert int(after) == int(before) and float(total) == 40_000
