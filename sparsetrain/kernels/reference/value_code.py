"""Value codes in plain numpy. Lengths and dtypes are checked by `kernels.value_code`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsetrain.kernels.corrupt import CorruptCode

INT8_BLOCK = 256
INT4_BLOCK = 64
SMALLEST = np.float32(1e-30)
LARGEST_SCALE = np.float32(float.fromhex("0x1.020406p+121"))  # 127 of it are still finite
LARGEST_BF16 = np.uint32(0x7F7F)
ROOT = np.float32(0.70710678)
LEVELS = (np.array([1.0, ROOT], np.float32) * np.array([[1.0], [0.5], [0.25], [0.125]], np.float32)).reshape(-1)


class ValueCodes:
    """The plain version of everything that the compiled library does with values."""

    def decode_fp32(self, data: Tensor, count: int) -> Tensor:
        """Return fp32 [count]."""
        return _finite(np.frombuffer(data.numpy().tobytes(), dtype="<f4").astype(np.float32))

    def encode_bf16(self, values: Tensor, total: int) -> Tensor:
        """Return `total` bytes; the largest fp32 numbers, which would round up to infinity, become the largest bf16."""
        top = torch.finfo(torch.bfloat16).max
        return values.clamp(-top, top).to(torch.bfloat16).view(torch.uint8)

    def decode_bf16(self, data: Tensor, count: int) -> Tensor:
        """Return fp32 [count]."""
        return _finite(_wide(np.frombuffer(data.numpy().tobytes(), dtype="<u2")))

    def encode_int8(self, values: Tensor, total: int) -> Tensor:
        """Return `total` bytes: scales, then signed bytes."""
        rows = _rows(values.numpy(), INT8_BLOCK)
        largest = np.abs(rows).max(axis=1, initial=0.0)
        quiet = largest < SMALLEST
        scales = np.minimum(np.where(quiet, np.float32(0.0), largest / np.float32(127.0)), LARGEST_SCALE)
        quotients = rows / np.where(quiet, np.float32(1.0), scales)[:, None]
        codes = np.clip(np.rint(quotients), -127, 127).astype(np.int8)
        codes[quiet] = 0
        data = np.concatenate([scales.astype("<f4").view(np.uint8), codes.reshape(-1)[: values.numel()].view(np.uint8)])
        assert data.size == total
        return torch.from_numpy(data)

    def decode_int8(self, data: Tensor, count: int) -> Tensor:
        """Return fp32 [count]."""
        blocks = -(-count // INT8_BLOCK)
        plain = data.numpy()
        scales = np.frombuffer(plain[: 4 * blocks].tobytes(), dtype="<f4")
        codes = plain[4 * blocks :].view(np.int8)
        if not ((scales <= LARGEST_SCALE) & ~np.signbit(scales)).all() or (codes == -128).any():
            raise CorruptCode("a scale or byte that no encoder writes")
        values = codes.astype(np.float32) * np.repeat(scales.astype(np.float32), INT8_BLOCK)[:count]
        return torch.from_numpy(values)

    def encode_int4(self, values: Tensor, total: int) -> Tensor:
        """Return `total` bytes: scales, then nibbles."""
        rows = _rows(values.numpy(), INT4_BLOCK)
        magnitude = np.abs(rows)
        scales = _bf16_above(magnitude.max(axis=1, initial=0.0))
        levels = _wide(scales)[:, None]
        codes = np.signbit(rows).astype(np.uint8) << 3
        for factor in int4_factors():
            codes += magnitude < levels * factor
        nibbles = codes.reshape(-1)[: values.numel()]
        nibbles = np.append(nibbles, np.uint8(0)) if nibbles.size % 2 else nibbles
        data = np.concatenate([scales.astype("<u2").view(np.uint8), nibbles[0::2] | nibbles[1::2] << 4])
        assert data.size == total
        return torch.from_numpy(data)

    def decode_int4(self, data: Tensor, count: int) -> Tensor:
        """Return fp32 [count]."""
        blocks = -(-count // INT4_BLOCK)
        plain = data.numpy()
        scales = np.frombuffer(plain[: 2 * blocks].tobytes(), dtype="<u2").astype(np.uint32)
        packed = plain[2 * blocks :]
        if (scales > LARGEST_BF16).any() or (count % 2 and packed[-1] >> 4):
            raise CorruptCode("a scale or nibble that no encoder writes")
        codes = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]
        magnitude = np.repeat(_wide(scales), INT4_BLOCK)[:count] * LEVELS[codes & 7]
        return torch.from_numpy(np.where(codes & 8, -magnitude, magnitude))


def int4_factors() -> np.ndarray:
    """Return the seven deciding thresholds between neighbouring levels, as shares of the scale (fp32)."""
    return (LEVELS[:-1] + LEVELS[1:]) * np.float32(0.5)


def _finite(values: np.ndarray) -> Tensor:
    if not np.isfinite(values).all():
        raise CorruptCode("values that are not finite")
    return torch.from_numpy(values)


def _rows(values: np.ndarray, block: int) -> np.ndarray:
    """Return values as [blocks, block], zeros past the last."""
    rows = np.zeros(-(-values.size // block) * block, dtype=np.float32)
    rows[: values.size] = values
    return rows.reshape(-1, block)


def _bf16_above(largest: np.ndarray) -> np.ndarray:
    """Return the bits (uint32) of the smallest bf16 not below; above the largest bf16, that one."""
    return np.minimum(largest.view(np.uint32) + np.uint32(0xFFFF) >> np.uint32(16), LARGEST_BF16)


def _wide(scales: np.ndarray) -> np.ndarray:
    """Return bf16 bits as fp32."""
    return (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)
