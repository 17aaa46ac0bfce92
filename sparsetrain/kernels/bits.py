"""Booleans as bits: how masks travel, are stored and are hashed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """Return `mask` (bool, any shape, any device) as uint8 [ceil(elements / 8)] on the CPU, lowest bit first.

    Bits past the last element are zero. Raises ValueError for other dtypes.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, not {mask.dtype}")
    flat = mask.detach().contiguous().cpu().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack(data: Tensor, size: int) -> Tensor:
    """Return the `size` booleans (1-D, CPU) that `pack` made `data` of.

    Raises ValueError when `data` is not uint8, has another length, or sets bits past the last element.
    """
    if data.dtype != torch.uint8 or data.dim() != 1:
        raise ValueError(f"packed bits must be uint8, 1-D, not {data.dtype} {tuple(data.shape)}")
    if data.numel() != (size + 7) // 8:
        raise ValueError(f"{data.numel()} bytes for {size} bits")
    flags = np.unpackbits(data.detach().contiguous().cpu().numpy(), bitorder="little")
    if flags[size:].any():
        raise ValueError(f"bits are set past the last of {size}")
    return torch.from_numpy(flags[:size].view(bool))
