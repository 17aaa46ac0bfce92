"""The CUDA kernels, run by Triton's interpreter where there is no GPU: slow, so in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
import torch
from sparsetrain.kernels import sampling
from sparsetrain.kernels.reference.merge import merge_cpu
from sparsetrain.kernels.reference.select import select_cpu
from sparsetrain.kernels.triton.merge import merge_cuda
from sparsetrain.kernels.triton.select import select_cuda

device = "cuda" if torch.cuda.is_available() else "cpu"
bits = lambda tensor: tensor.cpu().contiguous().view(torch.int32)


def move(tensor):
    return None if tensor is None else tensor.to(device)


def same(old, gradient, k, scale, limits):
    one, two = gradient.clone(), move(gradient.clone())
    plan = sampling.plan(gradient.numel(), k)
    a, b = select_cpu(old, one, k, scale, limits, plan), select_cuda(move(old), two, k, scale, limits, plan)
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip((*a, one), (*b, two), strict=True))


generator = torch.Generator().manual_seed(1)
for size in (100, 16384, 40001):
    normal, old = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    for data in (normal, normal.round(), torch.zeros(size), normal * 1e-40, torch.where(normal > 2, normal, 0.0)):
        for k in (1, size // 100, size // 10, size):
            for before, scale in ((None, 1.0), (old, 1.0), (old.round(), 0.3)):
                same(before, data, k, scale, None)
            same(old, data, k, 1.0, (k // 2, 2 * k))
    for value in (float("inf"), float("nan")):
        data = normal.clone()
        data[size // 3] = value
        same(old, data, size // 10, 1.0, None)
    sources = []
    for share in (0.01, 0.3, 0.0):
        places = torch.randperm(size, generator=generator)[: int(share * size)].sort().values.to(torch.int32)
        sources.append((places, torch.randn(places.numel(), generator=generator)))
    one = merge_cpu(sources, torch.empty(size), 1 / 3)
    two = merge_cuda([(move(a), move(b)) for a, b in sources], torch.empty(size, device=device), 1 / 3)
    assert torch.equal(bits(one), bits(two))
print("same")
"""


def test_cuda_kernels_give_the_bits_of_the_reference():
    import torch

    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **interpreted}, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0 and done.stdout == "same\n", done.stderr
