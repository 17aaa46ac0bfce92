import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving

from sparsetrain.kernels.expand import collect, expand, turned
from sparsetrain.kernels.pattern import SEGMENT, Pattern
from sparsetrain.kernels.sddmm import sddmm
from sparsetrain.kernels.spmm import spmm

SIZES = st.one_of(st.integers(1, 20), st.integers(1, 200))
WIDE = st.one_of(st.integers(1, 40), st.integers(1, 5 * SEGMENT))
BATCHES = st.one_of(st.integers(0, 9), st.integers(0, 300))
DENSITIES = st.sampled_from([0.0, 0.02, 0.3, 1.0])


def drawn(rows: int, width: int, density: float, batch: int, seed: int):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=draw) < density
    pattern = Pattern.of(mask)
    values = torch.randn(pattern.count, generator=draw)
    x, dy = torch.randn(batch, width, generator=draw), torch.randn(batch, rows, generator=draw)
    return mask, pattern, values, x, dy, torch.randn(rows, generator=draw)


def near(found: torch.Tensor, wanted: torch.Tensor, terms: int) -> bool:
    """Sums of `terms` products of normal numbers, in any order."""
    return bool(torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-5 * max(1, terms) ** 0.5))


@settings(max_examples=40, deadline=None)
@given(SIZES, WIDE, DENSITIES, BATCHES, st.sampled_from([1, 2, 3]), st.integers(0, 2**31))
def test_all_versions_give_the_dense_products(libraries, rows, width, density, batch, threads, seed):
    mask, pattern, values, x, dy, bias = drawn(rows, width, density, batch, seed)
    dense = torch.zeros(rows, width, dtype=torch.float64)
    dense[mask] = values.double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, library in {"reference": None, **libraries}.items():
            with serving(library):
                assert near(spmm(pattern, values, x, bias), x.double() @ dense.t() + bias.double(), width), name
                assert near(spmm(pattern, values, x), x.double() @ dense.t(), width), name
                assert near(spmm(pattern.turned[0], turned(pattern, values), dy), dy.double() @ dense, rows), name
                assert torch.equal(expand(pattern, values), dense.float()), name
                assert torch.equal(collect(pattern, dense.float()), values), name
                assert near(sddmm(pattern, x, dy), (dy.double().t() @ x.double())[mask], batch), name
    finally:
        torch.set_num_threads(before)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.integers(1, 400), DENSITIES, BATCHES, st.integers(0, 2**31))
def test_rows_with_the_same_columns_give_the_same_together(libraries, rows, width, density, batch, seed):
    draw = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, width, generator=draw) < density).repeat_interleave(4, 0).repeat_interleave(4, 1)
    pattern = Pattern.of(mask)
    assert pattern.together == bool(mask.any()) and pattern.turned[0].together == pattern.together
    values, bias = torch.randn(pattern.count, generator=draw), torch.randn(4 * rows, generator=draw)
    x, dy = torch.randn(batch, 4 * width, generator=draw), torch.randn(batch, 4 * rows, generator=draw)
    for name, library in {"reference": None, **libraries}.items() if pattern.together else ():
        with serving(library):
            one, other = (spmm(pattern, values, x, bias, together=together) for together in (False, True))
            assert near(other, one.double(), width), name
            one, other = (sddmm(pattern, x, dy, together=together) for together in (False, True))
            assert near(other, one.double(), batch), name


def test_rows_that_differ_are_not_worked_on_together():
    pattern = Pattern.of(torch.eye(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="do not come in fours"):
        spmm(pattern, torch.zeros(4), torch.zeros(1, 4), together=True)
    with pytest.raises(ValueError, match="do not come in fours"):
        sddmm(pattern, torch.zeros(1, 4), torch.zeros(1, 4), together=True)


def test_threads_change_no_bit(libraries):
    _, pattern, values, x, dy, bias = drawn(1500, 1400, 0.1, 300, 3)
    for library in libraries.values():
        found = []
        for threads in (1, 2, 5):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            with serving(library):
                found.append((spmm(pattern, values, x, bias), sddmm(pattern, x, dy)))
            torch.set_num_threads(before)
        for y, gradient in found[1:]:
            assert torch.equal(y, found[0][0]) and torch.equal(gradient, found[0][1])


def test_what_is_not_a_number_stays_in_its_sample(libraries):
    _, pattern, values, x, _, bias = drawn(70, 90, 0.5, 40, 1)
    x[7] = float("nan")
    for library in (None, *libraries.values()):
        with serving(library):
            y = spmm(pattern, values, x, bias)
        assert bool(y[7].isnan().any()) and bool(torch.isfinite(y[torch.arange(40) != 7]).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5)}, r"x is fp32 \[batch, 4\], not torch.float32 \[3, 5\]"),
        ({"x": torch.zeros(3, 4).half()}, "not torch.float16"),
        ({"x": torch.zeros(4)}, r"\[4\]"),
        ({"values": torch.zeros(7)}, r"values are fp32 \[8\]"),
        ({"bias": torch.zeros(3)}, r"a bias is fp32 \[2\]"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    pattern = Pattern.of(torch.ones(2, 4, dtype=torch.bool))
    given = {"values": torch.zeros(8), "x": torch.zeros(3, 4), "bias": None, **change}
    with pytest.raises(ValueError, match=message):
        spmm(pattern, given["values"], given["x"], given["bias"])


def test_gradients_of_unlike_batches_are_refused():
    pattern = Pattern.of(torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="x has 3 samples, dy 2"):
        sddmm(pattern, torch.zeros(3, 4), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="dy is fp32"):
        sddmm(pattern, torch.zeros(3, 4), torch.zeros(3, 3))


def test_another_matrix_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 4\] is not 2 x 4"):
        collect(Pattern.of(torch.ones(2, 4, dtype=torch.bool)), torch.zeros(3, 4))
