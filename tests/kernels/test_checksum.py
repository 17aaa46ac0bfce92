import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_versions import serving

from sparsetrain.kernels.checksum import checksum


def definition(data: bytes) -> int:
    padded = data + bytes(-len(data) % 8)
    total = len(data) * 0x9E3779B97F4A7C15
    for i in range(0, len(padded), 8):
        total += int.from_bytes(padded[i : i + 8], "little") * (2 * (i // 8) + 1)
    total &= 2**64 - 1
    return total >> 32 ^ total & (2**32 - 1)


def tensor(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


@given(st.binary(max_size=300))
def test_all_versions_follow_the_definition(libraries, data):
    for library in (None, *libraries.values()):
        with serving(library):
            assert checksum(tensor(data)) == definition(data)


@pytest.mark.parametrize("size", [8 * (1 << 16) + 3, 8 * (1 << 17), 1_300_001])
def test_long_messages_are_summed_in_portions_and_on_any_byte(libraries, size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    shifted = torch.from_numpy(np.concatenate([data[:3], data]))[3:]
    wanted = definition(data.tobytes())
    for library in (None, *libraries.values()):
        with serving(library):
            assert checksum(shifted) == wanted


def test_each_changed_byte_and_each_cut_is_noticed(libraries):
    data = np.random.default_rng(1).integers(0, 256, 203, dtype=np.uint8)
    with serving(libraries["native"]):
        right = checksum(torch.from_numpy(data))
        for at in range(data.size):
            for change in range(1, 256):
                data[at] ^= change
                assert checksum(torch.from_numpy(data)) != right
                data[at] ^= change
        assert len({checksum(torch.from_numpy(data[:size])) for size in range(204)}) == 204
        assert checksum(torch.zeros(8, dtype=torch.uint8)) != checksum(torch.zeros(9, dtype=torch.uint8))


def test_other_tensors_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        checksum(torch.zeros(8))
