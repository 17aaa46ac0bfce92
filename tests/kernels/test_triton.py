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

BLOCKS = """
import torch
from sparsetrain.kernels.blocks import Blocks
from sparsetrain.kernels.reference import block_product as reference
from sparsetrain.kernels.triton.block_product import gradient_cuda, product_cuda

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = torch.Generator().manual_seed(1)
move = lambda tensor: tensor.to(device)
# The interpreter multiplies the bits of a bfloat16.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
cases = ((16, torch.float32, "highest"), (32, torch.float32, "medium"), (16, HALF, "highest"))
for size, dtype, precision in cases:
    torch.set_float32_matmul_precision(precision)
    off = 1e-4 if dtype == torch.float32 and precision == "highest" else 2e-2
    for density in (0.0, 0.4):
        kept = torch.rand(5, 3, generator=generator) < density
        mask = kept.repeat_interleave(size, 0).repeat_interleave(size, 1)
        blocks, there = Blocks.of(mask), Blocks.of(move(mask))
        values, bias = (torch.randn(n, generator=generator).to(dtype) for n in (int(mask.sum()), 5 * size))
        for batch in (0, 1, 70):
            x, dy = (torch.randn(batch, n * size, generator=generator).to(dtype) for n in (3, 5))
            wide = [each.float() for each in (values, x, bias, dy)]
            pairs = (
                (reference.product(blocks, *wide[:3], False), product_cuda(there, move(values), move(x), move(bias))),
                (
                    reference.product(blocks, wide[0], wide[3], None, True),
                    product_cuda(there, move(values), move(dy), None, True),
                ),
                (reference.gradient(blocks, wide[1], wide[3]), gradient_cuda(there, move(x), move(dy))),
            )
            for one, two in pairs:
                assert two.dtype == dtype and one.shape == two.shape
                error = (one - two.cpu().float()).abs()
                assert bool((error <= off * (1 + one.abs())).all()), (size, dtype, density, batch, error.max())
print("same")
"""


@pytest.mark.parametrize("script", [SCRIPT, BLOCKS], ids=["bits", "blocks"])
def test_cuda_kernels_give_what_the_reference_gives(script):
    import torch

    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **interpreted}, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0 and done.stdout == "same\n", done.stderr
