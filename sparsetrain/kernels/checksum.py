"""A quick 32-bit checksum of a message: against broken links and programs, not against forgers."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.kernels import versions
from sparsetrain.kernels.reference.checksum import checksum_cpu


def checksum(data: Tensor) -> int:
    """Return the checksum (0 .. 2^32 - 1) of `data` (uint8, 1-D, CPU).

    The bytes, zero-padded, are little-endian 64-bit words w_i; the sum of w_i * (2 i + 1) modulo 2^64, plus the
    length times an odd constant, is folded by xor of its halves. An odd factor loses no bit of a word, so one
    changed byte always changes the sum, and its fold in all but about one of 2^32 cases. Raises ValueError for
    other dtypes.
    """
    if data.dtype != torch.uint8 or data.dim() != 1 or data.device.type != "cpu":
        raise ValueError(f"data must be uint8, 1-D, on the CPU, not {data.dtype} {tuple(data.shape)} {data.device}")
    native = versions.native()
    total = (checksum_cpu if native is None else native.checksum)(data.contiguous())
    return (total >> 32) ^ (total & 0xFFFFFFFF)
