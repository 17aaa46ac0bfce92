import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_versions import serving

from sparsetrain.kernels.combine import combine


def listed(size: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    places = torch.nonzero(torch.rand(size, generator=draw) < share).flatten().int()
    values = torch.randn(places.numel(), generator=draw)
    values[::5] = -0.0
    return places, values


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.integers(0, 50), st.integers(0, 50_000)),
    st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    st.integers(0, 2**31),
)
def test_all_versions_give_the_union_and_its_sums_in_either_order(libraries, size, one, other, seed):
    left, right = listed(size, one, seed), listed(size, other, seed + 1)
    either = torch.zeros(size, dtype=torch.bool)
    dense = torch.full((size,), -0.0)
    for places, values in (left, right):
        either[places.long()] = True
        dense[places.long()] += values  # -0 + x keeps the sign of every zero
    wanted = torch.nonzero(either).flatten().int()
    for name, library in {"reference": None, **libraries}.items():
        with serving(library):
            for pair in ((left, right), (right, left)):
                places, values = combine(*pair)
                assert torch.equal(places, wanted), name
                assert torch.equal(values.view(torch.int32), dense[wanted.long()].view(torch.int32)), name


@pytest.mark.parametrize(
    ("places", "values", "message"),
    [
        (torch.zeros(1), torch.zeros(1), "int32 and fp32"),
        (torch.zeros(1, dtype=torch.int32), torch.zeros(1).half(), "int32 and fp32"),
        (torch.zeros(2, dtype=torch.int32), torch.zeros(1), r"\(2,\) indices"),
    ],
)
def test_wrong_arguments_are_refused(places, values, message):
    with pytest.raises(ValueError, match=message):
        combine((places, values), listed(10, 0.5, 0))
