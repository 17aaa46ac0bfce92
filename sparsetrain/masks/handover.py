"""Masks as one message: what a rank gets that joins a run under way, before its first step, and what ranks that do not
agree show each other."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sparsetrain.masks.maskset import UPDATE, MaskSet

HEADER = struct.Struct("<4sQ16s")  # magic, mask epoch, digest of the masks
MAGIC = b"SPTM"


class CorruptHandover(ValueError):
    """The message is not the masks of this model; it names what differs. Nothing of it may be used."""


def pack(masks: MaskSet) -> bytes:
    """Return epoch, digest, and the bits of both sets of every tensor in model order: 28 bytes and n / 4, the same
    length for all masks of a model."""
    reduced = masks.reduced()
    pairs = [(mask, reduced.update(name)) for name, mask in reduced.masks.items()]
    bits = [np.packbits(mask.cpu().numpy()).tobytes() for pair in pairs for mask in pair]
    return HEADER.pack(MAGIC, reduced.epoch, reduced.digest()) + b"".join(bits)


def unpack(data: bytes, like: Mapping[str, Tensor]) -> MaskSet:
    """Return the masks of `data`, with names, shapes and devices of `like`, the tensors that are masked here.

    Raises CorruptHandover unless the digest of what was read, names, shapes and epoch included, is the sender's.
    """
    size = HEADER.size + sum(2 * -(-tensor.numel() // 8) for tensor in like.values())
    if len(data) != size:
        raise CorruptHandover(f"masks: {len(data)} bytes, but those of this model have {size}")
    magic, epoch, digest = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise CorruptHandover(f"masks: begin with {magic!r}, not {MAGIC!r}")
    start, packed = HEADER.size, {}
    for name, tensor in like.items():
        for key in (name, UPDATE + name):
            length = -(-tensor.numel() // 8)
            packed[key] = torch.from_numpy(np.frombuffer(bytearray(data[start : start + length]), np.uint8))
            start += length
    try:
        masks = MaskSet.from_packed(packed, like, epoch).reduced()
    except ValueError as error:
        raise CorruptHandover(f"masks: {error}") from error
    if masks.digest() != digest:
        raise CorruptHandover(
            f"masks: digest {masks.digest().hex()} at mask epoch {epoch}, but their sender's is {digest.hex()}"
        )
    return masks
