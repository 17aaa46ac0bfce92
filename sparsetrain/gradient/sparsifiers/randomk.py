"""Keep k places drawn at random, the same on all ranks: the control that any choice by value has to beat."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.config.numbers import Count
from sparsetrain.gradient.sparsifiers.base import Ask, Sparsifier, compensate


class RandomK(Sparsifier):
    """k places without replacement from a seed that all ranks share: no indices travel, `packed` sums the values."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`seed` of the draws; exchange number and bucket are mixed in."""

        seed: Count = 0

    shared = True

    def select(self, old: Tensor | None, buffer: Tensor, ask: Ask) -> Entries:
        """See Sparsifier: exactly k entries."""
        compensate(old, buffer, ask.scale)
        places = torch.from_numpy(draw(buffer.numel(), ask.k, f"{self.config.seed}/{ask.step}/{ask.bucket}"))
        at = places.to(buffer.device)
        values = buffer[at]
        # The whole buffer counts: what is not finite would stay in it for ever.
        finite = bool(torch.isfinite(buffer.sum())) or bool(torch.isfinite(buffer).all())
        buffer[at] = 0.0
        return Entries(at.to(torch.int32), values, shared=True, asked=ask.k, finite=finite)


def draw(size: int, k: int, key: str) -> np.ndarray:
    """Return k of 0..size-1 (int64, ascending), uniform without replacement, from `key` alone.

    Own arithmetic (splitmix64), not a library's generator: ranks may run different versions of a library.
    """
    if 2 * k > size:
        keep = np.ones(size, dtype=bool)
        if k < size:
            keep[draw(size, size - k, key)] = False
        return np.flatnonzero(keep)
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    found, drawn = np.empty(0, dtype=np.int64), 0
    while found.size < k:
        count = 2 * (k - found.size) + 16
        fresh = (_splitmix(seed, drawn, count) % np.uint64(size)).astype(np.int64)
        drawn += count
        together = np.concatenate([found, fresh])
        _, first = np.unique(together, return_index=True)
        found = together[np.sort(first)]
    return np.sort(found[:k])


def _splitmix(seed: int, start: int, count: int) -> np.ndarray:
    """Return `count` 64-bit words of the splitmix64 stream (Steele, Lea and Flood, OOPSLA 2014) from `start`."""
    step = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word = step + np.uint64(seed)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
