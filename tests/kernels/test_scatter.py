import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving
from selections import bits

from sparsetrain.kernels.scatter import scatter_add


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 50_000),
    st.floats(0, 1),
    st.sampled_from([1.0, -1.0, 0.3, 0.0]),
    st.integers(0, 2**31),
    st.integers(1, 3),
)
def test_all_versions_give_the_same_bits(libraries, size, density, scale, seed, threads):
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(size, generator=generator)
    places = torch.randperm(size, generator=generator)[: round(density * size)].sort().values.to(torch.int32)
    values = torch.randn(places.numel(), generator=generator)
    wanted = out.clone()
    wanted[places.long()] += values * scale
    for name, library in {"reference": None, **libraries}.items():
        changed = out.clone()
        with serving(library, threads):
            assert scatter_add(changed, places, values, scale) is changed
        assert torch.equal(bits(changed), bits(wanted)), name


@pytest.mark.parametrize("places", [[-1], [10], [0, 0], [3, 2], [1, 2, 2**31 - 1]])
def test_places_outside_or_out_of_order_are_refused_before_anything_changes(libraries, places):
    for library in (None, *libraries.values()):
        out = torch.ones(10)
        with serving(library), pytest.raises(ValueError, match=r"indices must be ascending in 0..9"):
            scatter_add(out, torch.tensor(places, dtype=torch.int32), torch.ones(len(places)))
        assert torch.equal(out, torch.ones(10))


@pytest.mark.parametrize(
    ("out", "indices", "values", "message"),
    [
        (torch.ones(10).double(), torch.zeros(1).int(), torch.ones(1), "out must be fp32"),
        (torch.ones(20)[::2], torch.zeros(1).int(), torch.ones(1), "contiguous"),
        (torch.ones(10), torch.zeros(1).long(), torch.ones(1), "entries are int32 and fp32"),
        (torch.ones(10), torch.zeros(1).int(), torch.ones(1).double(), "entries are int32 and fp32"),
        (torch.ones(10), torch.zeros(1).int(), torch.ones(2), r"\(1,\) indices on cpu for \(2,\) values"),
    ],
)
def test_wrong_arguments_are_refused(out, indices, values, message):
    with pytest.raises(ValueError, match=message):
        scatter_add(out, indices, values)


def test_lists_that_are_not_contiguous_are_read_as_they_are(libraries):
    places, values = torch.arange(8, dtype=torch.int32)[::2], torch.arange(8.0)[::2]
    for library in (None, *libraries.values()):
        with serving(library):
            out = scatter_add(torch.zeros(8), places, values)
        assert torch.equal(out, torch.tensor([0.0, 0, 2, 0, 4, 0, 6, 0]))
