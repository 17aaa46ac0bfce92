"""The message of one bucket: ascending unique indices and their values, as one buffer of bytes.

Layout: 24-byte header, k little-endian int32 indices, k values. The receiver trusts nothing: length, magic, version,
mask epoch, bucket size, order and range of the indices, finite values are checked before anything is scattered.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import torch
from torch import Tensor

HEADER = struct.Struct("<4sBBHIIII")
MAGIC = b"SPTR"
VERSION = 1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CODES = {torch.float32: 1, torch.bfloat16: 2}


class CorruptPayload(RuntimeError):
    """A message that is not what this rank expects; it names what differs and is never scattered."""


@dataclasses.dataclass(frozen=True)
class Payload:
    """`indices` int32 ascending and unique in [0, size), `values` as sent, of one bucket at one mask epoch."""

    indices: Tensor
    values: Tensor
    size: int
    epoch: int
    bucket: int

    def encode(self) -> Tensor:
        """Return the message, uint8 of 24 + k (4 + itemsize) bytes, on the device of the values."""
        head = HEADER.pack(
            MAGIC, VERSION, _CODES[self.values.dtype], self.bucket, self.epoch, self.size, self.indices.numel(), 0
        )
        header = torch.frombuffer(bytearray(head), dtype=torch.uint8).to(self.values.device)
        return torch.cat([header, self.indices.view(torch.uint8), self.values.view(torch.uint8)])


def decode(message: Tensor, like: Payload, source: int) -> tuple[Tensor, Tensor]:
    """Return (indices int64, values fp32) of a message from rank `source` that must match this rank's own `like`.

    Raises CorruptPayload when header, length, order or range of the indices is not as expected.
    """
    head = bytes(message[: HEADER.size].cpu().numpy())
    expected = HEADER.pack(
        MAGIC, VERSION, _CODES[like.values.dtype], like.bucket, like.epoch, like.size, like.indices.numel(), 0
    )
    if head != expected:
        raise CorruptPayload(f"rank {source}, bucket {like.bucket}: header {_read(head)}, expected {_read(expected)}")
    k = like.indices.numel()
    length = HEADER.size + k * (4 + like.values.itemsize)
    if message.numel() != length:
        raise CorruptPayload(f"rank {source}, bucket {like.bucket}: {message.numel()} bytes, expected {length}")
    indices = message[HEADER.size : HEADER.size + 4 * k].clone().view(torch.int32)
    values = message[HEADER.size + 4 * k :].clone().view(like.values.dtype)
    if k and not _ascending(indices, like.size):
        raise CorruptPayload(f"rank {source}, bucket {like.bucket}: indices not ascending in 0..{like.size - 1}")
    if not bool(torch.isfinite(values).all()):
        raise CorruptPayload(f"rank {source}, bucket {like.bucket}: values that are not finite")
    return indices.long(), values.float()


def _ascending(indices: Tensor, size: int) -> bool:
    if int(indices[0]) < 0 or int(indices[-1]) >= size:
        return False
    if indices.device.type == "cpu":
        flat = indices.numpy()
        return bool(np.all(flat[1:] > flat[:-1]))
    return bool((indices[1:] > indices[:-1]).all())


def _read(head: bytes) -> str:
    if len(head) != HEADER.size or head[:4] != MAGIC:
        return f"{head[:4]!r}"
    _, version, dtype, bucket, epoch, size, k, _ = HEADER.unpack(head)
    return f"(version {version}, dtype {dtype}, bucket {bucket}, mask epoch {epoch}, size {size}, k {k})"
