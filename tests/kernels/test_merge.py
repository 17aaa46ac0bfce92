import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving

from sparsetrain.kernels.merge import merge
from sparsetrain.kernels.reference.merge import merge_device


def source(size: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(size, generator=generator)[:count].sort().values.to(torch.int32)
    return places, torch.randn(count, generator=generator)


def definition(sources, size: int, scale: float) -> torch.Tensor:
    out = torch.zeros(size)
    for places, values in sources:
        out[places.long()] = out[places.long()] + values * scale
    return out


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.integers(0, 200), st.integers(0, 400_000)),
    st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.3, 1.0]), max_size=5),
    st.sampled_from([1.0, 0.25, 1 / 3, -2.0, 0.0]),
    st.integers(0, 2**31),
    st.integers(1, 3),
)
def test_all_versions_sum_in_the_order_of_the_sources(libraries, size, densities, scale, seed, threads):
    sources = [source(size, round(density * size), seed + i) for i, density in enumerate(densities)]
    wanted = definition(sources, size, scale).view(torch.int32)
    for name, library in {"reference": None, **libraries}.items():
        out = torch.full((size,), float("nan"))
        with serving(library, threads):
            assert merge(sources, out, scale) is out
        assert torch.equal(out.view(torch.int32), wanted), name
    out = torch.full((size,), float("nan"))
    assert torch.equal(merge_device(sources, out, scale).view(torch.int32), wanted)


def test_values_that_are_not_finite_and_sums_that_overflow_pass_through(libraries):
    places = torch.tensor([1, 3], dtype=torch.int32)
    sources = [(places, torch.tensor([3e38, float("inf")]))] * 2
    for library in (None, *libraries.values()):
        with serving(library):
            assert merge(sources, torch.empty(5), 1.0).tolist() == [0, float("inf"), 0, float("inf"), 0]


@pytest.mark.parametrize(
    ("places", "values", "out", "message"),
    [
        (torch.zeros(1), torch.zeros(1), torch.zeros(4), "int32 and fp32"),
        (torch.zeros(1, dtype=torch.int32), torch.zeros(1).double(), torch.zeros(4), "int32 and fp32"),
        (torch.zeros(2, dtype=torch.int32), torch.zeros(1), torch.zeros(4), r"\(2,\) indices"),
        (torch.zeros(1, dtype=torch.int32), torch.zeros(1), torch.zeros(8)[::2], "contiguous"),
        (torch.zeros(1, dtype=torch.int32), torch.zeros(1), torch.zeros(4).half(), "out must be fp32"),
    ],
)
def test_wrong_arguments_are_refused(places, values, out, message):
    with pytest.raises(ValueError, match=message):
        merge([(places, values)], out, 1.0)
