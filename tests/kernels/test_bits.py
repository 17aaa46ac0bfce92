import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.kernels.bits import pack, unpack


@given(st.lists(st.booleans(), max_size=70))
def test_bits_lie_lowest_first_and_come_back(flags):
    mask = torch.tensor(flags, dtype=torch.bool)
    data = pack(mask)
    assert data.dtype == torch.uint8 and data.numel() == (len(flags) + 7) // 8
    assert int.from_bytes(bytes(data.tolist()), "little") == sum(flag << i for i, flag in enumerate(flags))
    assert torch.equal(unpack(data, len(flags)), mask)


def test_any_shape_and_layout():
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(1)) > 0.5
    assert torch.equal(unpack(pack(mask.t()), 63), mask.t().reshape(-1))
    assert pack(torch.tensor(True)).tolist() == [1]


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (torch.zeros(2, dtype=torch.uint8), 8, "2 bytes for 8 bits"),
        (torch.zeros(0, dtype=torch.uint8), 1, "0 bytes for 1 bits"),
        (torch.tensor([8], dtype=torch.uint8), 3, "set past the last of 3"),
        (torch.zeros(1), 3, "uint8"),
    ],
)
def test_wrong_bytes_are_refused(data, size, message):
    with pytest.raises(ValueError, match=message):
        unpack(data, size)


def test_only_booleans_are_packed():
    with pytest.raises(ValueError, match="bool"):
        pack(torch.ones(3))
