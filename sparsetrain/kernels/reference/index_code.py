"""Index codes in plain numpy. Lengths, dtypes and ranges of count and size are checked by `kernels.index_code`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsetrain.kernels.corrupt import CorruptCode
from sparsetrain.kernels.reference import deltas


class IndexCodes:
    """The plain version of everything that the compiled library does with places."""

    def check_ascending(self, indices: Tensor, size: int) -> bool:
        """Say whether `indices` (int32) are strictly ascending in 0..size-1."""
        return _ascending(indices.numpy(), size)

    def encode_elias_fano(self, indices: Tensor, low: int, total: int) -> Tensor:
        """Return `total` bytes with `low` bits of each place plainly, the rest in unary."""
        places = indices.numpy()
        data = np.zeros(total, dtype=np.uint8)
        if places.size == 0:
            return torch.from_numpy(data)
        plain = _pack_low(places, low)
        data[: plain.size] = plain
        bits = np.zeros((total - plain.size) * 8, dtype=np.uint8)
        bits[(places >> low) + np.arange(places.size)] = 1
        data[plain.size :] = np.packbits(bits, bitorder="little")
        return torch.from_numpy(data)

    def decode_elias_fano(self, data: Tensor, count: int, size: int, low: int) -> Tensor:
        """Return int32 [count]."""
        plain, split = data.numpy(), (count * low + 7) // 8
        if low == 4 and count % 2 and plain[split - 1] >> 4:
            raise CorruptCode("bits are set past the last low part")
        high = np.flatnonzero(np.unpackbits(plain[split:], bitorder="little"))
        if high.size != count:
            raise CorruptCode(f"{high.size} places instead of {count}")
        places = (high - np.arange(count)) << low | _unpack_low(plain[:split], low, count)
        return _checked(places, size)

    def deltas_bytes(self, indices: Tensor) -> int:
        """Return the bytes that `encode_deltas` needs."""
        return deltas.layout(deltas.widths(deltas.gaps(indices.numpy())), indices.numel())[1]

    def encode_deltas(self, indices: Tensor, total: int) -> Tensor:
        """Return `total` bytes: widths, then packed gaps."""
        return torch.from_numpy(deltas.encode(indices.numpy(), total))

    def decode_deltas(self, data: Tensor, count: int, size: int) -> Tensor:
        """Return int32 [count]."""
        return _checked(deltas.decode(data.numpy(), count), size)

    def encode_block16(self, indices: Tensor, size: int, total: int) -> Tensor:
        """Return `total` bytes: places per block, then places inside blocks."""
        places = indices.numpy()
        counts = np.bincount(places >> 16, minlength=(size + 0xFFFF) >> 16).astype("<u4")
        data = np.concatenate([counts.view(np.uint8), (places & 0xFFFF).astype("<u2").view(np.uint8)])
        assert data.size == total
        return torch.from_numpy(data)

    def decode_block16(self, data: Tensor, count: int, size: int) -> Tensor:
        """Return int32 [count]."""
        blocks = (size + 0xFFFF) >> 16
        plain = data.numpy()
        counts = np.frombuffer(plain[: 4 * blocks].tobytes(), dtype="<u4").astype(np.int64)
        if int(counts.sum()) != count:
            raise CorruptCode(f"blocks hold {int(counts.sum())} places instead of {count}")
        inside = np.frombuffer(plain[4 * blocks :].tobytes(), dtype="<u2").astype(np.int64)
        return _checked(np.repeat(np.arange(blocks, dtype=np.int64) << 16, counts) | inside, size)

    def encode_bitmap(self, indices: Tensor, total: int) -> Tensor:
        """Return `total` bytes with a bit set for each place."""
        bits = np.zeros(8 * total, dtype=np.uint8)
        bits[indices.numpy()] = 1
        return torch.from_numpy(np.packbits(bits, bitorder="little"))

    def decode_bitmap(self, data: Tensor, count: int, size: int) -> Tensor:
        """Return int32 [count]."""
        places = np.flatnonzero(np.unpackbits(data.numpy(), bitorder="little"))
        if places.size != count:
            raise CorruptCode(f"{places.size} places instead of {count}")
        return _checked(places, size)


def _pack_low(places: np.ndarray, low: int) -> np.ndarray:
    if low == 16:
        return (places & 0xFFFF).astype("<u2").view(np.uint8)
    parts = (places & ((1 << low) - 1)).astype(np.uint8)
    if low == 8:
        return parts
    parts = np.append(parts, np.uint8(0)) if parts.size % 2 else parts
    return parts[0::2] | parts[1::2] << 4


def _unpack_low(data: np.ndarray, low: int, count: int) -> np.ndarray:
    if low == 16:
        return np.frombuffer(data.tobytes(), dtype="<u2").astype(np.int64)
    if low == 8:
        return data.astype(np.int64)
    return np.stack([data & 15, data >> 4], axis=1).reshape(-1)[:count].astype(np.int64)


def _ascending(places: np.ndarray, size: int) -> bool:
    if places.size == 0:
        return True
    return bool(places[0] >= 0 and places[-1] < size and (places[1:] > places[:-1]).all())


def _checked(places: np.ndarray, size: int) -> Tensor:
    if not _ascending(places, size):
        raise CorruptCode(f"places are not ascending in 0..{size - 1}")
    return torch.from_numpy(places.astype(np.int32))
