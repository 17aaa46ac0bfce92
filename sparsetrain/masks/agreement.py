"""Every rank proves that it holds the same masks, before anything uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from sparsetrain.masks.maskset import MaskSet

Gather = Callable[[bytes], list[bytes]]


class MaskDisagreement(RuntimeError):
    """Ranks computed different masks; the message names the first layer, index and the ranks that differ."""


def agree(masks: MaskSet, gather: Gather, policy: Literal["raise", "rank0"]) -> MaskSet:
    """Return the masks that all ranks hold. Collective through `gather`, which returns all ranks' bytes in order.

    16 bytes travel when all agree. Where they do not, bitmaps follow, and the policy decides: raise
    MaskDisagreement, or take rank 0's masks.
    """
    digests = gather(masks.digest())
    if len(set(digests)) == 1:
        return masks
    size = {name: bits.numel() for name, bits in masks.packed().items()}
    everyone = [_unpack(data, size, masks) for data in gather(_pack(masks))]
    if policy == "rank0":
        return everyone[0]
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    where = everyone[0].first_difference(everyone[others[0]])
    place = f"first at {where[0]}[{where[1]}]" if where else "in their epoch"
    raise MaskDisagreement(f"mask epoch {masks.epoch}: ranks {others} differ from rank 0, {place}")


def _pack(masks: MaskSet) -> bytes:
    return b"".join(bits.numpy().tobytes() for bits in masks.packed().values())


def _unpack(data: bytes, size: dict[str, int], like: MaskSet) -> MaskSet:
    packed, start = {}, 0
    for name, length in size.items():
        packed[name] = torch.frombuffer(bytearray(data[start : start + length]), dtype=torch.uint8)
        start += length
    return MaskSet.from_packed(packed, like.masks, like.epoch)
