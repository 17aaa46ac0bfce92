import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving

from sparsetrain.kernels.conv import conv, conv_gradient
from sparsetrain.kernels.pattern import Pattern
from sparsetrain.kernels.shifts import shifts

WINDOWS = st.tuples(st.integers(1, 4), st.integers(1, 3))
IMAGES = st.tuples(st.integers(0, 4), st.integers(1, 20), st.integers(1, 40))
DILATIONS = st.tuples(st.integers(1, 3), st.integers(1, 2))


def near(found: torch.Tensor, wanted: torch.Tensor, terms: int) -> bool:
    """Sums of `terms` products of normal numbers, in any order."""
    return bool(torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-5 * max(1, terms) ** 0.5))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 9), WINDOWS, IMAGES, DILATIONS,
    st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([1, 2, 3]), st.data(),
)  # fmt: skip
def test_all_versions_give_the_dense_convolution(
    libraries, outputs, channels, window, images, dilation, density, threads, data
):
    count, *size = images
    reach = [step * (length - 1) for step, length in zip(dilation, window, strict=True)]
    least = [max(0, (r - s + 2) // 2) for r, s in zip(reach, size, strict=True)]
    if any(low > r for low, r in zip(least, reach, strict=True)):
        return
    padding = tuple(data.draw(st.integers(low, r)) for low, r in zip(least, reach, strict=True))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    shape = (outputs, channels, *window)
    mask = torch.rand(shape, generator=draw) < density
    pattern = Pattern.of(mask)
    values, bias = torch.randn(pattern.count, generator=draw), torch.randn(outputs, generator=draw)
    x = torch.randn(count, channels, *size, generator=draw)
    dense = torch.zeros(shape, dtype=torch.float64)
    dense[mask] = values.double()
    if count:
        y = F.conv2d(x.double(), dense, bias.double(), 1, padding, dilation)
    else:
        y = torch.zeros(0, outputs, *[s + 2 * p - r for s, p, r in zip(size, padding, reach, strict=True)]).double()
    dy = torch.randn(y.shape, generator=draw)
    dx, gradient = torch.zeros_like(x).double(), torch.zeros(shape).double()
    if count:
        steps = ([1, 1], list(padding), list(dilation), False, [0, 0], 1, [True, True, False])
        dx, gradient, _ = torch.ops.aten.convolution_backward(dy.double(), x.double(), dense, None, *steps)
    found = shifts(pattern, shape, tuple(x.shape[1:]), padding, dilation)
    assert found is not None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, library in {"reference": None, **libraries}.items():
            with serving(library):
                assert near(conv(found[0], values, x, bias), y, dense[0].numel()), name
                assert near(conv(found[1], values, dy), dx, dense.numel()), name
                assert near(conv_gradient(found[0], x, dy), gradient[mask], y.numel()), name
    finally:
        torch.set_num_threads(before)


def test_threads_change_no_bit_of_a_gradient(libraries):
    mask = torch.rand(48, 32, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.2
    pattern = Pattern.of(mask)
    found = shifts(pattern, tuple(mask.shape), (32, 12, 12), (1, 1), (1, 1))
    assert found is not None
    x, dy, values = torch.randn(3, 32, 12, 12), torch.randn(3, 48, 12, 12), torch.randn(pattern.count)
    before = torch.get_num_threads()
    try:
        for library in libraries.values():
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                with serving(library):
                    results.append(
                        (conv(found[0], values, x), conv(found[1], values, dy), conv_gradient(found[0], x, dy))
                    )
            assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_is_told():
    mask = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    pattern, shape = Pattern.of(mask), tuple(mask.shape)
    assert shifts(pattern, shape, (3, 5, 5), (3, 0), (1, 1)) is None  # a border of nothing but itself
    assert shifts(pattern, shape, (3, 2, 5), (0, 0), (1, 1)) is None  # smaller than the window
    found = shifts(pattern, shape, (3, 5, 5), (1, 1), (1, 1))
    assert found is not None
    x, values = torch.zeros(1, 3, 5, 5), torch.zeros(54)
    with pytest.raises(ValueError, match=r"x is fp32 \[images, 3, 5, 5\]"):
        conv(found[0], values, x[:, :2])
    with pytest.raises(ValueError, match=r"values are fp32 \[54\]"):
        conv(found[0], values[1:], x)
    with pytest.raises(ValueError, match=r"dy is fp32 \[images, 2, 5, 5\]"):
        conv_gradient(found[0], x, x)
    with pytest.raises(ValueError, match="x has 1 images, dy 2"):
        conv_gradient(found[0], x, torch.zeros(2, 2, 5, 5))
