"""Values as 32 or 16 bits, or as 8 or 4 with a scale per block. What rounding takes away is the caller's to keep.

All are defined to the bit, so that the sender knows what receivers decode. Values must be finite. All bytes are
uint8 1-D CPU tensors, little-endian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.corrupt import CorruptCode as CorruptCode
from sparsetrain.kernels.reference import value_code as reference

INT8_BLOCK = 256
INT4_BLOCK = 64


def decode_fp32(data: Tensor, count: int) -> Tensor:
    """Return the `count` values (fp32) as `data` holds them. Raises CorruptCode for a wrong length or value."""
    return _version().decode_fp32(_bytes(data, 4 * count, count), count)


def encode_bf16(values: Tensor) -> Tensor:
    """Return two bytes per value (fp32 1-D): the nearest bf16, half to even, the largest bf16 above that."""
    return _version().encode_bf16(_values(values), 2 * values.numel())


def decode_bf16(data: Tensor, count: int) -> Tensor:
    """Return the `count` values (fp32). Raises CorruptCode for a wrong length or a value that is not finite."""
    return _version().decode_bf16(_bytes(data, 2 * count, count), count)


def int8_bytes(count: int) -> int:
    """Return the bytes of `count` values."""
    return 4 * ((count + INT8_BLOCK - 1) // INT8_BLOCK) + count


def encode_int8(values: Tensor) -> Tensor:
    """Return all scales (fp32, largest magnitude / 127 of each 256 values), then a signed byte per value (fp32 1-D).

    A byte is value / scale rounded half to even and clamped to +-127. A block whose largest magnitude is below 1e-30
    has scale zero and bytes zero: its quotients would not be safe.
    """
    return _version().encode_int8(_values(values), int8_bytes(values.numel()))


def decode_int8(data: Tensor, count: int) -> Tensor:
    """Return the `count` values (fp32), byte * scale. Raises CorruptCode for a wrong length, byte or scale."""
    return _version().decode_int8(_bytes(data, int8_bytes(count), count), count)


def int4_bytes(count: int) -> int:
    """Return the bytes of `count` values."""
    return 2 * ((count + INT4_BLOCK - 1) // INT4_BLOCK) + (count + 1) // 2


def encode_int4(values: Tensor) -> Tensor:
    """Return all scales (bf16, the largest magnitude of each 64 values, rounded up), then 4 bits per value (fp32 1-D).

    Bit 3 is the sign, bits 0-2 name the nearest of the levels scale * 2^(-j/2), j = 0..7; halfway between two the
    larger is taken. There is no level zero: zeros become the smallest level. The first value has the low nibble.
    """
    return _version().encode_int4(_values(values), int4_bytes(values.numel()))


def decode_int4(data: Tensor, count: int) -> Tensor:
    """Return the `count` values (fp32). Raises CorruptCode for a wrong length, scale or unused nibble."""
    return _version().decode_int4(_bytes(data, int4_bytes(count), count), count)


def _version() -> reference.ValueCodes:
    return versions.native() or reference.ValueCodes()


def _values(values: Tensor) -> Tensor:
    if values.dtype != torch.float32 or values.dim() != 1 or values.device.type != "cpu":
        raise ValueError(f"values must be fp32, 1-D, on the CPU, not {values.dtype} {tuple(values.shape)}")
    return values.detach().contiguous()


def _bytes(data: Tensor, expected: int, count: int) -> Tensor:
    if data.dtype != torch.uint8 or data.dim() != 1 or data.device.type != "cpu":
        raise ValueError(f"data must be uint8, 1-D, on the CPU, not {data.dtype} {tuple(data.shape)} {data.device}")
    if count < 0 or data.numel() != expected:
        raise CorruptCode(f"{data.numel()} bytes for {count} values, not {expected}")
    return data.detach().contiguous()
