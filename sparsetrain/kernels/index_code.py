"""Ascending places as bytes, and back. Decoders distrust what they read: nothing else ever indexes memory.

Every code here is canonical: one message per set of places. A decoder therefore accepts exactly what the encoder
writes, and raises CorruptCode for the rest. `size` is the length of the bucket that the places lie in, `count` their
number; both come from outside the message. All bytes are uint8 1-D CPU tensors, little-endian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.corrupt import CorruptCode as CorruptCode
from sparsetrain.kernels.reference import index_code as reference

BLOCK = 1 << 16  # places per block of the 16-bit code
LOW_BITS = (4, 8, 16)  # whole nibbles and bytes: quick to take apart
DELTAS = 128  # gaps per block


def elias_fano_low(count: int, size: int) -> int:
    """Return how many low bits of each place are written plainly: the choice that takes the fewest bytes."""
    return min(LOW_BITS, key=lambda low: _elias_fano_bytes(count, size, low))


def elias_fano_bytes(count: int, size: int) -> int:
    """Return the bytes of any `count` places of `size`."""
    return _elias_fano_bytes(count, size, elias_fano_low(count, size))


def _elias_fano_bytes(count: int, size: int, low: int) -> int:
    return (count * low + 7) // 8 + (count + ((size - 1) >> low) + 7) // 8 if count else 0


def encode_elias_fano(indices: Tensor, size: int) -> Tensor:
    """Return low bits plainly, then high bits in unary (Elias 1974, Fano 1971): place (index >> low) + i has bit i.

    Raises ValueError when `indices` (int32, 1-D) are not ascending in 0..size-1; so do all encoders.
    """
    places = _places(indices, size)
    low, total = elias_fano_low(len(places), size), elias_fano_bytes(len(places), size)
    return _version().encode_elias_fano(places, low, total)


def decode_elias_fano(data: Tensor, count: int, size: int) -> Tensor:
    """Return the `count` places of `size` (int32 [count]). Raises CorruptCode; so do all decoders."""
    plain = _bytes(data, count, size, elias_fano_bytes(count, size))
    return _version().decode_elias_fano(plain, count, size, elias_fano_low(count, size))


def deltas_bytes(indices: Tensor) -> int:
    """Return the bytes that `encode_deltas` would take for ascending int32 `indices`."""
    return _version().deltas_bytes(indices.contiguous())


def encode_deltas(indices: Tensor, size: int) -> Tensor:
    """Return gaps (index - previous - 1) in blocks of 128, bit-packed at the width of the block's largest.

    One byte of width per block comes first, then the blocks, each starting on a byte (frame of reference; Lemire and
    Boytsov 2015). Short where places cluster.
    """
    places = _places(indices, size)
    return _version().encode_deltas(places, deltas_bytes(places))


def decode_deltas(data: Tensor, count: int, size: int) -> Tensor:
    """Return the `count` places of `size` (int32 [count])."""
    blocks = (count + DELTAS - 1) // DELTAS
    return _version().decode_deltas(_bytes(data, count, size, None, least=blocks), count, size)


def block16_bytes(count: int, size: int) -> int:
    """Return the bytes of any `count` places of `size`."""
    return 4 * ((size + BLOCK - 1) // BLOCK) + 2 * count


def encode_block16(indices: Tensor, size: int) -> Tensor:
    """Return how many places each block of 65536 holds (uint32), then each place inside its block (uint16)."""
    places = _places(indices, size)
    return _version().encode_block16(places, size, block16_bytes(len(places), size))


def decode_block16(data: Tensor, count: int, size: int) -> Tensor:
    """Return the `count` places of `size` (int32 [count])."""
    return _version().decode_block16(_bytes(data, count, size, block16_bytes(count, size)), count, size)


def bitmap_bytes(size: int) -> int:
    """Return the bytes of any number of places of `size`."""
    return (size + 7) // 8


def encode_bitmap(indices: Tensor, size: int) -> Tensor:
    """Return one bit per coordinate, set where a place is."""
    return _version().encode_bitmap(_places(indices, size), bitmap_bytes(size))


def decode_bitmap(data: Tensor, count: int, size: int) -> Tensor:
    """Return the `count` places of `size` (int32 [count])."""
    return _version().decode_bitmap(_bytes(data, count, size, bitmap_bytes(size)), count, size)


def check_ascending(indices: Tensor, size: int) -> bool:
    """Say whether int32 `indices` are strictly ascending in 0..size-1: what raw int32 has instead of a decoder."""
    if indices.dtype != torch.int32 or indices.dim() != 1 or indices.device.type != "cpu":
        raise ValueError(f"indices must be int32, 1-D, on the CPU, not {indices.dtype} {tuple(indices.shape)}")
    return _version().check_ascending(indices.contiguous(), size)


def _version() -> reference.IndexCodes:
    return versions.native() or reference.IndexCodes()


def _places(indices: Tensor, size: int) -> Tensor:
    if size >= 1 << 31 or not check_ascending(indices, size):
        raise ValueError(f"indices are not ascending in 0..{size - 1}")
    return indices.detach().contiguous()


def _bytes(data: Tensor, count: int, size: int, expected: int | None, least: int = 0) -> Tensor:
    if data.dtype != torch.uint8 or data.dim() != 1 or data.device.type != "cpu":
        raise ValueError(f"data must be uint8, 1-D, on the CPU, not {data.dtype} {tuple(data.shape)} {data.device}")
    if not 0 <= count <= size < 1 << 31:
        raise CorruptCode(f"{count} places of {size}")
    if data.numel() < least or (expected is not None and data.numel() != expected):
        raise CorruptCode(f"{data.numel()} bytes for {count} places of {size}, not {expected or least}")
    return data.detach().contiguous()
