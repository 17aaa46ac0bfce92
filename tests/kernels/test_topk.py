import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetrain.kernels.topk import CHUNK, SAMPLE, _select_device, compensate_select


def ranked(acc: torch.Tensor, k: int) -> list[int]:
    """The definition: by (|value| descending, index ascending)."""
    flat = acc.abs().numpy()
    return sorted(np.lexsort((np.arange(flat.size), -flat))[:k].tolist())


def check(residual: torch.Tensor | None, gradient: torch.Tensor, k: int) -> None:
    acc = gradient + residual if residual is not None else gradient.clone()
    old = residual.clone() if residual is not None else None
    buffer = gradient.clone()
    indices, values = compensate_select(residual, buffer, k)
    assert indices.dtype == torch.int32 and values.dtype == torch.float32
    assert indices.tolist() == ranked(acc, k)
    assert torch.equal(values, acc[indices.long()])
    rebuilt = buffer.clone()
    rebuilt[indices.long()] += values
    assert torch.equal(rebuilt, acc)
    if old is not None:
        assert torch.equal(residual, old)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.sampled_from(["normal", "ties", "zeros"]), st.data())
def test_small_arrays_follow_the_definition(size, seed, shape, data):
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(size, generator=generator)
    if shape == "ties":
        gradient = gradient.mul(1.5).round()
    if shape == "zeros":
        gradient = torch.zeros(size)
    residual = torch.randn(size, generator=generator) if data.draw(st.booleans()) else None
    check(residual, gradient, data.draw(st.integers(1, size)))


@pytest.mark.parametrize("size", [4 * SAMPLE + 1, 3 * CHUNK - 5, 1_000_003])
@pytest.mark.parametrize("density", [0.3, 0.1, 0.01, 0.001])
def test_large_arrays_take_the_sampled_path_and_stay_exact(size, density):
    generator = torch.Generator().manual_seed(size)
    scale = torch.exp(0.7 * torch.randn(64, generator=generator)).repeat_interleave(size // 64 + 1)[:size]
    check(
        1.5 * scale * torch.randn(size, generator=generator),
        scale * torch.randn(size, generator=generator),
        max(1, round(density * size)),
    )


@pytest.mark.parametrize("build", ["sparse", "periodic", "constant"])
def test_arrays_that_mislead_the_sample_stay_exact(build):
    size = 8 * SAMPLE
    gradient = torch.zeros(size)
    if build == "sparse":
        gradient[5] = 1.0
    elif build == "periodic":
        gradient[:: size // SAMPLE] = 3.0
        gradient += 0.1
    else:
        gradient += 2.0
    check(None, gradient, size // 100)


def test_device_path_gives_the_same_answer():
    gradient = torch.randn(5000, generator=torch.Generator().manual_seed(1)).mul(2).round()
    one, two = gradient.clone(), gradient.clone()
    a, b = compensate_select(None, one, 137), _select_device(None, two, 137)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and torch.equal(one, two)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_outside_the_buffer_is_refused(k):
    with pytest.raises(ValueError, match=r"k must be in 1..10"):
        compensate_select(None, torch.ones(10), k)
