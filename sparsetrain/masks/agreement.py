"""Every rank proves that it holds the same masks and weights, before anything goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sparsetrain.masks.handover import pack, unpack
from sparsetrain.masks.maskset import MaskSet

Gather = Callable[[bytes], list[bytes]]  # collective: returns all ranks' bytes in rank order
Policy = Literal["raise", "rank0"]


class Disagreement(RuntimeError):
    """Ranks hold different bits where they must be equal; the message names tensor, index, ranks and both values."""


class MaskDisagreement(Disagreement):
    """Ranks computed different masks."""


class ReplicasDiffer(Disagreement):
    """Ranks hold different weights."""


def agree(masks: MaskSet, gather: Gather, policy: Policy) -> MaskSet:
    """Return the masks that all ranks hold. Collective through `gather`.

    16 bytes travel when all agree. Where they do not, bitmaps follow, and the policy decides: raise
    MaskDisagreement, or take rank 0's masks.
    """
    digests = gather(masks.digest())
    others = _differing(digests)
    if not others:
        return masks
    everyone = [unpack(data, masks.masks) for data in gather(pack(masks))]
    if policy == "rank0":
        return everyone[0]
    where = everyone[0].first_difference(everyone[others[0]])
    place = "in their epoch"
    if where:
        name, index, value = where
        place = f"first at {name}[{index}]: {int(value)} on rank 0, {int(not value)} on rank {others[0]}"
    raise MaskDisagreement(f"mask epoch {masks.epoch}: ranks {others} differ from rank 0, {place}")


@torch.no_grad()
def agree_weights(weights: Mapping[str, Tensor], gather: Gather, policy: Policy) -> list[str]:
    """Return the names of the tensors that were taken from rank 0, none when all ranks hold the same bits. Collective.

    16 bytes travel when all agree. Where they do not, digests of each tensor follow, then the first tensor that
    differs (`raise`: ReplicasDiffer) or all of them (`rank0`).
    """
    own = {name: _digest(tensor) for name, tensor in weights.items()}
    others = _differing(gather(hashlib.blake2b(b"".join(own.values()), digest_size=16).digest()))
    if not others:
        return []
    table = gather(b"".join(own.values()))
    differ = [name for n, name in enumerate(own) if len({row[16 * n : 16 * n + 16] for row in table}) > 1]
    for name in differ:
        everyone = [_values(data, weights[name]) for data in gather(_bytes(weights[name]))]
        if policy == "raise":
            raise ReplicasDiffer(f"weights of ranks {others} differ from rank 0's, {_first(name, everyone)}")
        weights[name].copy_(everyone[0])
    return differ


def _differing(digests: list[bytes]) -> list[int]:
    return [rank for rank, digest in enumerate(digests) if digest != digests[0]]


def _first(name: str, everyone: list[Tensor]) -> str:
    bits = [tensor.flatten().view(torch.uint8).view(tensor.numel(), -1) for tensor in everyone]
    rank = next(rank for rank, each in enumerate(bits) if not torch.equal(each, bits[0]))
    index = int((bits[rank] != bits[0]).any(1).nonzero()[0])
    zero, theirs = (float(everyone[r].flatten()[index]) for r in (0, rank))
    return f"first at {name}[{index}]: {zero!r} on rank 0, {theirs!r} on rank {rank}"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(_bytes(tensor), digest_size=16).digest()


def _values(data: bytes, like: Tensor) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).view(like.dtype).view(like.shape)
